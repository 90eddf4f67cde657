"""Stage distill: step 2, resolution-adapted distillation (bridge distillation, eqs. 4-6).

Wires labels and targets to `students.train`; the teacher itself is never loaded. Modes: c = labels only,
s = adapted target only, dc = labels and the teacher's own feature, sc = labels and adapted target.
"""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from compress import adapt, teach
from compress.config import Config, Distill
from compress.data import TRAIN
from compress.run import Run, file_state, load_features
from faces.crops import CropStore
from faces.dataset import Faces, Progress
from faces.distributed import lead
from faces.files import whole
from students.batches import Examples, crop_side, epoch_order
from students.registry import create_student, load_weights, zoo_file
from students.student import Student, count_macs, count_parameters
from students.train import train_student

STUDENT, REFERENCE_STUDENT = "student.safetensors", "reference_student.safetensors"


def settings(config: Config) -> Any:
    return [config.distill, config.seed, config.device, torch.__version__, file_state(weights_file(config.distill))]


def run(run: Run) -> dict[str, Any]:
    """Writes student.safetensors and curves.csv; beside a bootstrap also its reference's student."""
    settings = run.config.distill
    if not settings.trains:
        return _untrained(run)
    targets = {"dc": teach.FEATURES, "s": adapt.TARGETS, "sc": adapt.TARGETS}.get(settings.mode)
    student = _train(run, targets, STUDENT, "distill")
    beside = ""
    if has_reference(run):
        reference = {"dc": teach.REFERENCE_FEATURES}.get(settings.mode, adapt.REFERENCE_TARGETS)
        _train(run, reference, REFERENCE_STUDENT, f"distill ({teach.REFERENCE})")
        beside = f"; the same again from {teach.REFERENCE}"
    loss = "labels alone" if settings.mode == "c" else f"{settings.loss} loss"
    return {
        "summary": f"{settings.student}, mode {settings.mode}, {loss}, "
        f"{settings.steps * settings.batch:,} degraded faces seen{beside}",
        "mode": settings.mode,
        "loss": "none" if settings.mode == "c" else settings.loss,
        **_described(settings.student, student),
    }


def _untrained(run: Run) -> dict[str, Any]:
    """The weights that were given are the student."""
    how = run.config.distill
    student = start_student(how, run.config.seed)
    _save(student, how.student, run.path(STUDENT))
    # Of an earlier student in this folder.
    run.path("curves.csv").unlink(missing_ok=True)
    return {
        "summary": f"{how.student}, weights as given ({how.weights}), not trained",
        "mode": "none",
        "loss": "none",
        **_described(how.student, student),
    }


def _described(name: str, student: Student) -> dict[str, Any]:
    px = student.input_px
    return {
        "name": name,
        "params": count_parameters(student),
        "macs": count_macs(student, px),
        "input_px": px,
        "embedding_dim": student.mimic.out_features,
    }


def _save(student: Student, name: str, file: Path) -> None:
    state = {key: tensor.contiguous() for key, tensor in student.state_dict().items()}
    with whole(file) as temporary:
        # One note only: safetensors writes several in an order of chance, and the bytes are to be the same.
        save_file(state, temporary, {"student": name})


def has_reference(run: Run) -> bool:
    """Is there a second student, of a bootstrap's reference? Labels alone (mode c) know no teacher."""
    how = run.config.distill
    return run.facts("teacher")["bootstrap"] and how.mode != "c" and how.trains


def load_student(run: Run, file: str = STUDENT) -> Student:
    """The student of an ended distill stage, in evaluation mode."""
    student = create_student(run.config.distill.student)
    student.load_state_dict(load_file(run.path(file)))
    return student.eval()


def prepare(faces: Faces, targets: np.ndarray | None, how: Distill, px: int, seed: int, folder: Path) -> Examples:
    """What `students.train` takes, for a mode: labels only where the mode has a `c`, and for `c` alone no face
    without a label, as it would teach nothing. The crops are cut while the first epoch reads them, into a scratch
    file in `folder`."""
    if how.mode == "c":
        faces = faces.subset(faces.labelled)
    labels = faces.identities if "c" in how.mode else None
    order = epoch_order(len(faces), seed, 0).numpy()
    side = crop_side(max(px, *how.sizes), how.margin) if how.sizes else crop_side(px, how.margin)
    return Examples(CropStore(faces, side, how.margin, order, folder), how.margin, targets, labels)


def own_features(features: np.ndarray) -> np.ndarray:
    """The teacher's own features (N, D) as targets of mode dc: minus their mean, of length 1 on average.

    Without the mean, which all faces share, their cosines would hardly differ.
    """
    centred = features - features.mean(0)
    return centred / np.linalg.norm(centred, axis=1).mean()


def start_student(how: Distill, seed: int) -> Student:
    """A fresh student by seed, or one that starts from `how.weights`; UserError where these do not fit."""
    torch.manual_seed(seed)
    student = create_student(how.student)
    file = weights_file(how)
    return student if file is None else load_weights(student, file)


def weights_file(how: Distill) -> str | None:
    """Where the student's first weights lie: a file, or the package for `zoo`; None for random ones."""
    return str(zoo_file(how.student)) if how.weights == "zoo" else how.weights


def _train(run: Run, targets_file: str | None, file: str, what: str) -> Student:
    how, config = run.config.distill, run.config
    student = start_student(how, config.seed)
    checkpoint = run.path(f"work/{Path(file).stem}-{run.key}.pt")
    final = run.path(f"work/{Path(file).stem}-{run.key}.safetensors")
    if final.exists():
        # The stage was killed after this student and before the next, or the settings of an earlier run are back.
        student.load_state_dict(load_file(final))
        student.eval()
    else:
        with run.progress(what, how.steps) as advance:
            student, curve = lead(_learn, run.folder, config, targets_file, checkpoint, progress=advance)
        _write_curve(final.with_suffix(".csv"), curve)
        _save(student, how.student, final)
    checkpoint.unlink(missing_ok=True)
    _publish(final, run.path(file))
    if file == STUDENT:
        _publish(final.with_suffix(".csv"), run.path("curves.csv"))
    return student


def _learn(
    folder: Path, config: Config, targets_file: str | None, checkpoint: Path, progress: Progress | None = None
) -> tuple[Student, list[dict[str, float]]]:
    """The trained student and its curve; of several processes each one works on its share of every batch."""
    how = config.distill
    student = start_student(how, config.seed)
    targets = load_features(folder / targets_file) if targets_file else None
    if how.mode == "dc" and targets is not None:
        targets = own_features(targets)
    examples = prepare(Faces.load(folder / TRAIN), targets, how, student.input_px, config.seed, folder / "work")
    return student, train_student(student, examples, how, config.seed, config.device, checkpoint, progress)


def _publish(kept: Path, name: Path) -> None:
    with whole(name) as temporary:
        shutil.copyfile(kept, temporary)


def _write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    with whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(curve[-1]))
        writer.writeheader()
        writer.writerows(curve)
