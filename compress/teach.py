"""Stage teacher: get the teacher, and run it once over every public face."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.config import Config
from compress.data import load_parts
from compress.run import Run, cores, file_state, threads
from compress.tune import TUNED_FILE, tune
from faces.dataset import Faces
from faces.files import whole
from students.tiny import count_macs
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
    files = weight_files(config.teacher.name, config.teacher.weights)
    return [config.teacher, config.seed, config.device, [file_state(str(file)) for file in files]]


def run(run: Run) -> dict[str, Any]:
    """Writes work/features.npy (N, D) float32 of the training faces, at full size and each at its own alpha; a
    bootstrap also its fitted layer, a fine-tuned teacher also teacher.safetensors and finetune.csv."""
    train, _ = load_parts(run)
    teacher = create_teacher(run.config.teacher.name, run.config.teacher.weights)
    facts: dict[str, Any] = {}
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
        run.save_array(REFERENCE_FEATURES, embed_resumable(run, reference, train))
        facts["reference_source"] = reference.source
    teacher.to(run.config.device)
    method = run.config.teacher.finetune.method
    if method != "none":
        facts["finetuned"] = tune(run, teacher, _base(run, teacher))
    features = embed_resumable(run, teacher, train)
    run.save_array(FEATURES, features)
    return {
        "summary": f"{teacher.name}: {features.shape[1]}-d features of {len(train)} faces, {teacher.source}",
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
    teacher = create_teacher(run.config.teacher.name, _base(run))
    if run.facts("teacher")["method"] != "none":
        assert isinstance(teacher, Teacher)
        apply_tuned(teacher, run.path(TUNED_FILE))
    return teacher.to(run.config.device)


def _base(run: Run, teacher: Teacher | Ensemble | None = None) -> str | Path | None:
    """Where the weights lie from which fine-tuning started: the bootstrap that this run fitted, or what was given."""
    bootstrap = teacher.bootstrap if teacher is not None else run.facts("teacher")["bootstrap"]
    given = run.config.teacher.weights
    return run.path(BOOTSTRAP) if bootstrap and given is None else given


def embed_resumable(run: Run, teacher: Teacher | Ensemble, faces: Faces) -> np.ndarray:
    """Embeddings (N, D) of full-size crops, kept in chunks, from which a killed run continues."""
    # A name may hold a path and options, and be longer than a file name can.
    plain = re.sub(r"[^\w.-]+", "_", teacher.name)[:100]
    folder = run.path(f"work/{plain}-{run.key}")
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    with run.progress(f"{teacher.name} on public faces", len(faces)) as advance, threads(cores()):
        for start in range(0, len(faces), _CHUNK):
            file = folder / f"{start:08d}.npy"
            if file.exists():
                parts.append(np.load(file, allow_pickle=False))
                advance(len(parts[-1]))
                continue
            chunk = faces.subset(np.arange(start, min(start + _CHUNK, len(faces))))
            parts.append(teacher.embed_faces(chunk, progress=advance))
            with whole(file) as temporary:
                np.save(temporary.open("wb"), parts[-1])
    return np.concatenate(parts)
