"""A few steps of fine-tuning and of distillation: faces a second and peak memory."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_clock import peak_memory
from faces.dataset import Faces
from students import create_student
from students.batches import Examples, Recipe, training_crops
from students.train import train_student
from teachers.fabric import create_fabric
from teachers.finetune import finetune_teacher
from teachers.registry import create_single, default_method
from teachers.settings import finetune_settings

Row = dict[str, Any]


def finetuning(
    name: str, weights: str | None, faces: Faces, device: str, precision: str, steps: int, batch: int
) -> Row:
    """Rate of the steps behind the first third (which warms up) of the teacher's usual method."""
    teacher = create_single(name, weights)
    method = "full" if default_method(name) == "none" else default_method(name)
    how = finetune_settings(method, steps=steps, batch=batch)
    stamps: list[float] = []
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        fabric = create_fabric(device, precision=precision, folder=Path(folder))

        def work() -> None:
            finetune_teacher(teacher, faces, how, 0, Path(folder), fabric, base=weights,
                             progress=lambda *_: stamps.append(time.perf_counter()))  # fmt: skip

        _, most = peak_memory(device, work)
    return {"step": f"fine-tuning, {method}", "model": name, "device": device, "precision": precision, "batch": batch,
            "faces_per_second": _rate(stamps, batch), "peak_bytes": most}  # fmt: skip


def distillation(name: str, faces: Faces, device: str, steps: int, batch: int) -> Row:
    """Rate of a student's training on cached targets (random ones: the work is the same)."""
    student = create_student(name)
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(len(faces), 128)).astype(np.float32)
    crops = training_crops(faces, student.input_px, 0.125)
    examples = Examples(crops, 0.125, targets, faces.identities)
    stamps: list[float] = []

    def work() -> None:
        train_student(student, examples, Recipe(samples=steps * batch, batch=batch), 0, device,
                      progress=lambda done: stamps.extend([time.perf_counter()] * done))  # fmt: skip

    _, most = peak_memory(device, work)
    return {"step": "distillation", "model": name, "device": device, "batch": batch,
            "faces_per_second": _rate(stamps, batch), "peak_bytes": most}  # fmt: skip


def _rate(stamps: list[float], batch: int) -> float | None:
    start = len(stamps) // 3
    if len(stamps) - start < 2 or stamps[-1] <= stamps[start]:
        return None
    return batch * (len(stamps) - 1 - start) / (stamps[-1] - stamps[start])
