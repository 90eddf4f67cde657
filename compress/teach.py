"""Stage teacher: get the teacher, and run it once over every public face."""

from typing import Any

import numpy as np

from compress.config import Config
from compress.data import load_parts
from compress.run import Run, cores, file_state, threads
from faces.align import crop
from faces.dataset import Faces
from faces.files import whole
from students.tiny import count_macs, count_parameters
from teachers.backbones.bootstrap import Bootstrap
from teachers.bootstrap import fit_bootstrap, view_count
from teachers.registry import Teacher, create_teacher

REFERENCE = "dlib_resnet"
"""The teacher whose weights pip installs: a bootstrap is fitted to it and shown beside it."""
FEATURES, REFERENCE_FEATURES = "work/features.npy", "work/reference_features.npy"
_BOOTSTRAP = "work/bootstrap.safetensors"
_CHUNK = 512


def settings(config: Config) -> Any:
    return [config.teacher, config.seed, config.device, file_state(config.teacher.weights)]


def run(run: Run) -> dict[str, Any]:
    """Writes work/features.npy (N, D) float32 of the training faces; a bootstrap also its fitted layer."""
    train, _ = load_parts(run)
    teacher = create_teacher(run.config.teacher.name, run.config.teacher.weights)
    facts: dict[str, Any] = {}
    if teacher.bootstrap:
        teacher.to(run.config.device)
        reference = create_teacher(REFERENCE).to(run.config.device)
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
            backbone.save(run.path(_BOOTSTRAP))
        run.save_array(REFERENCE_FEATURES, embed_resumable(run, reference, train))
        facts["reference_source"] = reference.source
    teacher.to(run.config.device)
    features = embed_resumable(run, teacher, train)
    run.save_array(FEATURES, features)
    px = teacher.input_px
    return {
        "summary": f"{teacher.name}: {features.shape[1]}-d features of {len(train)} faces, {teacher.source}",
        "name": teacher.name,
        "source": teacher.source,
        "bootstrap": teacher.bootstrap,
        "method": run.config.teacher.method,
        "params": count_parameters(teacher),
        "macs": count_macs(teacher, px),
        "input_px": px,
        "embedding_dim": teacher.embedding_dim,
        "licence": teacher.licence,
        **facts,
    }


def load_teacher(run: Run) -> Teacher:
    """The teacher of an ended teacher stage, on the run's device."""
    fitted = run.path(_BOOTSTRAP)
    bootstrap = run.facts("teacher")["bootstrap"] and run.config.teacher.weights is None
    teacher = create_teacher(run.config.teacher.name, fitted if bootstrap else run.config.teacher.weights)
    return teacher.to(run.config.device)


def embed_resumable(run: Run, teacher: Teacher, faces: Faces) -> np.ndarray:
    """Embeddings (N, D) of full-size crops, kept in chunks, from which a killed run continues."""
    folder = run.path(f"work/{teacher.name}-{run.key}")
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    with run.progress(f"{teacher.name} on public faces", len(faces)) as advance, threads(cores()):
        for start in range(0, len(faces), _CHUNK):
            file = folder / f"{start:08d}.npy"
            chunk = slice(start, start + _CHUNK)
            if file.exists():
                parts.append(np.load(file, allow_pickle=False))
                advance(len(parts[-1]))
                continue
            crops = crop(faces.images[chunk], faces.landmarks[chunk], teacher.template, teacher.input_px)
            parts.append(teacher.embed(crops, progress=advance))
            with whole(file) as temporary:
                np.save(temporary.open("wb"), parts[-1])
    return np.concatenate(parts)
