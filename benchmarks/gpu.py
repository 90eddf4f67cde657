"""All that waits for a GPU, in one command: `python -m benchmarks gpu`."""

import shlex
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import gpu_backends as backends
from benchmarks import gpu_steps as steps
from benchmarks.gpu_clock import matrix_peak
from benchmarks.machine import describe
from export import engines
from export.parity import Trial
from export.sidecar import Card
from export.stage import Subject
from export.targets import PRECISIONS, TENSORRT, Target
from faces.align import crop
from faces.cli import Output, run_cli
from faces.degrade import reduce
from faces.errors import UserError
from faces.files import write_json
from faces.sources import open_faces
from students import create_student
from students.student import count_macs, count_parameters
from teachers.registry import create_single

Row = dict[str, Any]


def subject_of(name: str, weights: str | None, kind: str) -> Subject:
    """A student (random weights) or a teacher as exports want it, proved on faces that come with the install."""
    faces = open_faces("orl")
    model: Any = create_student(name) if kind == "student" else create_single(name, weights)
    px, template = model.input_px, "arcface" if kind == "student" else model.template
    images = reduce(crop(faces.images, faces.landmarks, template), None, px)[:256]
    card = Card(model=name, template=template, metric="cosine" if kind == "student" else model.metric, teacher=None,
                data=None, parameters=count_parameters(model), macs=count_macs(model, px))  # fmt: skip
    trial = Trial(images, np.full(len(images), -1), None, "full", "orl")
    return Subject(kind, model.eval(), card, trial, calibration=images[::2], calibration_source="orl, 128 faces")


def throughput(subject: Subject, folder: Path, device: str, capability: str | None, progress: Callable[[str], None],
               batches: tuple[int, ...] = backends.BATCHES) -> list[Row]:  # fmt: skip
    """The rows of one model in all backends."""
    px = subject.trial.images.shape[1]
    rows: list[Row] = []
    for backend in ("tensorrt", "tensorrt-rtx"):
        for precision in PRECISIONS:
            progress(f"{subject.name}: {backend} {precision}")
            row = {"runtime": backend, "precision": precision, "device": device}
            if capability is None:
                rows.append(row | {"not_run": "no NVIDIA GPU here"})
                continue
            work = folder / f"{backend}-{precision}"
            rows += backends.attempt(
                row,
                lambda b=backend, p=precision, w=work: backends.engine_rows(subject, w, b, p, capability, batches),  # type: ignore[misc]
            )
    for precision in ("fp32", "fp16"):
        progress(f"{subject.name}: onnxruntime CUDA {precision}")
        row = {"runtime": "onnxruntime CUDA", "precision": precision, "device": device}
        file = _onnx(folder, subject.name, precision)
        if file is None:
            rows.append(row | {"not_run": "its ONNX file was not made, as no engine of that precision was"})
            continue
        rows += backends.attempt(row, partial(backends.onnxruntime_rows, file, batches))
    progress(f"{subject.name}: torch")
    rows += backends.torch_rows(subject.model, px, device, batches)
    return [{"model": subject.card.model, "macs": subject.card.macs} | row for row in rows]


def _onnx(folder: Path, name: str, precision: str) -> Path | None:
    wanted = Target("onnx", precision, TENSORRT if precision == "int8" else None).file(name)
    return next(iter(sorted(folder.glob(f"*/{wanted}"))), None)


def everything(student: str, teacher: str, weights: str | None, device: str, training_steps: int,
               progress: Callable[[str], None],
               batches: tuple[int, ...] = backends.BATCHES) -> dict[str, Any]:  # fmt: skip
    """The whole measurement; each part that fails is a row with its reason."""
    library = engines.driver() if device == "cuda" else None
    capability = None if library is None else engines.capability(library)
    gpu = torch.cuda.get_device_name(0) if device == "cuda" else "none"
    found: dict[str, Any] = {"machine": describe() | {"gpu": gpu, "capability": capability}}
    found["peaks_gops"] = backends.attempt({}, lambda: [matrix_peak(device)])[0]
    found["throughput"], found["training"] = [], []
    faces = open_faces("orl")
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        for kind, name in (("student", student), ("teacher", teacher)):
            found["throughput"] += backends.attempt(
                {"model": name},
                lambda kind=kind, name=name: throughput(  # type: ignore[misc]
                    subject_of(name, weights if kind == "teacher" else None, kind), Path(folder, kind), device,
                    capability, progress, batches,
                ),
            )  # fmt: skip
    for precision in ("32", "bf16"):
        progress(f"fine-tuning {teacher}, {precision}")
        found["training"] += backends.attempt(
            {"step": "fine-tuning", "model": teacher, "precision": precision},
            lambda precision=precision: [  # type: ignore[misc]
                steps.finetuning(teacher, weights, faces, device, precision, training_steps, 32)
            ],
        )
    progress(f"distilling {student}")
    found["training"] += backends.attempt(
        {"step": "distillation", "model": student},
        lambda: [steps.distillation(student, faces, device, 10 * training_steps, 256)],
    )
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--student", default="tiny16", show_default=True)
@click.option("--teacher", default="dlib_resnet", show_default=True)
@click.option("--teacher-weights", "weights", metavar="FILE|random", help="For teachers that no package ships.")
@click.option("--steps", "training_steps", type=click.IntRange(6), default=30, show_default=True)
@click.option("--json", "json_file", type=Output(), default=Path("gpu.json"), show_default=True)
@run_cli
def main(student: str, teacher: str, weights: str | None, training_steps: int, json_file: Path) -> None:
    """On a machine with an NVIDIA GPU, in minutes: engines of student and teacher built and held to their
    models, throughput of every backend by CUDA events, a few steps of fine-tuning and distillation, peak memory.

    A backend that is missing or cannot run here is a row `not run: reason`. Run on one H200 so far, but for
    what needs an exported file.
    """
    if not engines.has_gpu():
        raise UserError("no NVIDIA driver or no GPU here: run this on a machine with one (nvidia-smi shows it)")
    if not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} sees no CUDA, though there is a GPU: install a CUDA build of torch")
    found = everything(student, teacher, weights, "cuda", training_steps, lambda what: click.echo(what, err=True))
    write_json(json_file, found | {"command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])})
    for row in [*found["throughput"], *found["training"]]:
        name = row.get("step") or f"{row.get('runtime', '')} {row.get('precision', '')} batch {row.get('batch', '-')}"
        said = f"not run: {row['not_run']}" if "not_run" in row else f"{row['faces_per_second'] or 0:,.0f} faces/s"
        click.echo(f"{row.get('model', '')}: {name}: {said}")
    click.echo(f"all of it: {json_file}")


if __name__ == "__main__":
    main()
