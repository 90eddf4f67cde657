"""Stage teacher: get the teacher, and run it once over every public face."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.config import Config, as_dict
from compress.data import TRAIN, load_parts
from compress.run import Run, file_state, load_features, save_features
from compress.tune import TUNED_FILE, tune
from faces.dataset import Faces, Progress, mirrored
from faces.distributed import barrier, lead, rank, world_size
from faces.threads import cores, threads
from students.student import count_macs
from teachers.backbones.bootstrap import Bootstrap
from teachers.bootstrap import fit_bootstrap, view_count
from teachers.ensemble import Ensemble
from teachers.registry import create_single, create_teacher, weight_files
from teachers.teacher import Teacher
from teachers.tuned import apply_tuned

REFERENCE = "dlib_resnet"
"""The teacher whose weights pip installs: a bootstrap is fitted to it and shown beside it."""
FEATURES, REFERENCE_FEATURES = "work/features.npy", "work/reference_features.npy"
BOOTSTRAP = "work/bootstrap.safetensors"
_CHUNK = 512


def settings(config: Config) -> Any:
    teacher, folds = as_dict(config.teacher), [config.evaluate.folds]
    if config.teacher.finetune.method == "none":
        # Nor does it matter how it would be fine-tuned, and what that would be measured by.
        teacher, folds = {key: teacher[key] for key in ("name", "weights", "mirror", "views")}, []
    files = [file_state(str(file)) for file in weight_files(config.teacher.name, config.teacher.weights)]
    return [teacher, folds, config.distill.trains, config.seed, config.device, torch.__version__, files]


def run(run: Run) -> dict[str, Any]:
    """Writes work/features.npy (N, D) float16 of the training faces, at full size and each at its own alpha, with
    `teacher.mirror` the mean with their mirror images', where a student learns from them; a bootstrap also its fitted
    layer, a fine-tuned teacher also teacher.safetensors and finetune.csv."""
    train, _ = load_parts(run)
    teacher = create_teacher(run.config.teacher.name, run.config.teacher.weights)
    facts: dict[str, Any] = {}
    teaches = run.config.distill.trains
    if isinstance(teacher, Teacher) and teacher.bootstrap:
        teacher.to(run.config.device)
        reference = create_single(REFERENCE).to(run.config.device)
        backbone = teacher.backbone
        assert isinstance(backbone, Bootstrap)
        if not backbone.fitted:
            real = train.subset(np.arange(run.facts("data")["split"]["train_faces"]))
            total = view_count(len(real), run.config.teacher.views)
            with run.progress("bootstrap views", total) as advance, threads(cores()):
                fit_bootstrap(
                    teacher, real, reference, run.path("work/bootstrap"), run.config.teacher.views,
                    run.config.seed, advance,
                )  # fmt: skip
            backbone.save(run.path(BOOTSTRAP))
        if teaches:
            run.save_features(REFERENCE_FEATURES, embed_resumable(run, reference, None, train))
        facts["reference_source"] = reference.source
    teacher.to(run.config.device)
    method, tuned = run.config.teacher.finetune.method, ""
    if method != "none":
        facts["finetuned"] = tune(run, teacher, _base(run, teacher.bootstrap))
        tuned = f", fine-tuned by {method} ({facts['finetuned']['steps']} steps)"
    seen = "to be compared with"
    if teaches:
        features = embed_resumable(run, teacher, _base(run, teacher.bootstrap), train)
        run.save_features(FEATURES, features)
        mirrors = " and their mirror images" if run.config.teacher.mirror else ""
        seen = f"{features.shape[1]}-d features of {len(train)} faces{mirrors}"
    return {
        "summary": f"{teacher.name}: {seen}, {teacher.source}{tuned}",
        "name": teacher.name,
        "source": teacher.source,
        "bootstrap": teacher.bootstrap,
        "method": method,
        "params": sum(one.backbone.count_parameters() for one in teacher.members),
        "macs": _macs(teacher),
        "input_px": teacher.input_px,
        "embedding_dim": teacher.embedding_dim,
        "licence": teacher.licence,
        **facts,
    }


def _macs(teacher: Teacher | Ensemble) -> int | None:
    """Multiply-accumulates a face, over all members; None where one is a frozen file, which cannot be counted."""
    if not all(one.trainable for one in teacher.members):
        return None
    # The fused attention kernel of the CPU is not counted; the plain one is.
    with sdpa_kernel(SDPBackend.MATH):
        return sum(count_macs(one, one.input_px) for one in teacher.members)


def load_teacher(run: Run) -> Teacher | Ensemble:
    """The teacher of an ended teacher stage, on the run's device."""
    facts = run.facts("teacher")
    teacher = create_teacher(run.config.teacher.name, _base(run, facts["bootstrap"]))
    if facts["method"] != "none":
        assert isinstance(teacher, Teacher)
        apply_tuned(teacher, run.path(TUNED_FILE))
    return teacher.to(run.config.device)


def _base(run: Run, bootstrap: bool) -> str | Path | None:
    """Where the weights lie from which fine-tuning started: the bootstrap that this run fitted, or what was given."""
    given = run.config.teacher.weights
    return run.path(BOOTSTRAP) if bootstrap and given is None else given


def embed_resumable(run: Run, teacher: Teacher | Ensemble, weights: str | Path | None, faces: Faces) -> np.ndarray:
    """Embeddings (N, D) of full-size crops, kept in chunks, from which a killed run continues; several processes
    share the chunks, and the others read the teacher from `weights`."""
    # A name may hold a path and options, and be longer than a file name can.
    plain = re.sub(r"[^\w.-]+", "_", teacher.name)[:100]
    folder = run.path(f"work/{plain}-{run.key}")
    folder.mkdir(parents=True, exist_ok=True)
    with run.progress(f"{teacher.name} on public faces", len(faces)) as advance, threads(cores()):
        lead(
            _embed_chunks, folder, run.path(TRAIN), teacher.name, weights, run.config.device,
            run.config.teacher.mirror, teacher=teacher, progress=advance,
        )  # fmt: skip
    return np.concatenate([load_features(folder / name) for name, _ in _chunks(len(faces))])


def embed(
    teacher: Teacher | Ensemble, faces: Faces, mirror: bool = False, progress: Progress | None = None
) -> np.ndarray:
    """Features (N, D) float32 of the faces at full size. With `mirror` the mean of each face's and its mirror image's,
    as long as the face's own: what a student learns then no longer depends on the side that a face shows."""
    if not mirror:
        return teacher.embed_faces(faces, progress=progress)
    parts = [np.empty((0, teacher.embedding_dim), np.float32)]
    for _, rows in _chunks(len(faces)):
        chunk = faces.subset(rows)
        own = teacher.embed_faces(chunk, progress=progress)
        both = own + teacher.embed_faces(mirrored(chunk))
        length, found = (np.linalg.norm(one, axis=1, keepdims=True) for one in (own, both))
        parts.append(both * (length / np.maximum(found, 1e-12)))
    return np.concatenate(parts)


def _embed_chunks(
    folder: Path,
    file: Path,
    name: str,
    weights: str | Path | None,
    device: str,
    mirror: bool,
    teacher: Teacher | Ensemble | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the chunks that are this process's and not there yet; ends when those of all processes are there."""
    teacher = teacher or create_teacher(name, weights).to(device)
    faces = Faces.load(file)
    for number, (chunk, rows) in enumerate(_chunks(len(faces))):
        if not (folder / chunk).exists() and number % world_size() == rank():
            features = embed(teacher, faces.subset(rows), mirror, progress)
            save_features(folder / chunk, features)
        elif progress:
            progress(len(rows))
    barrier()


def _chunks(count: int) -> Iterator[tuple[str, np.ndarray]]:
    for start in range(0, count, _CHUNK):
        yield f"{start:08d}.npy", np.arange(start, min(start + _CHUNK, count))
