"""Faces per second and latency of exported models: `python -m benchmarks.throughput --help`."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import export
from benchmarks.lazy import LazyGroup
from benchmarks.timing import measure
from faces.cli import run_cli
from faces.errors import UserError
from faces.files import write_json

BATCHES = (1, 32, 256)


@contextmanager
def _artifacts_of(student: str) -> Iterator[list[Path]]:
    """Files of a student with random weights (speed does not depend on them), in a folder that goes away."""
    # Here, as timing files that exist needs no torch.
    import torch

    from export.parity import Trial
    from export.sidecar import Card
    from export.stage import How, Subject, export_model
    from students import create_student
    from students.tiny import count_macs, count_parameters

    torch.manual_seed(0)
    model = create_student(student)
    click.echo(f"exporting {student} with random weights", err=True)
    px = model.input_px
    noise = np.random.default_rng(0).integers(0, 256, (256, px, px, 3), dtype=np.uint8)
    card = Card(
        model=student,
        template="arcface",
        metric="cosine",
        teacher=None,
        data=None,
        parameters=count_parameters(model),
        macs=count_macs(model, px),
    )
    with tempfile.TemporaryDirectory(prefix="bridgeface-") as folder:
        nobody = Trial(noise, np.full(len(noise), -1), None, f"same@{px}", "noise")
        rows, _ = export_model(Subject(student, model, card, nobody), folder, How())
        yield [Path(folder) / row["path"] for row in rows]


def _rows(files: Iterable[Path], threads: int, batches: tuple[int, ...], windows: int) -> list[dict[str, Any]]:
    # All are opened first, so that a wrong file is told before the first is timed.
    opened = [export.load(file, threads) for file in files]
    return [measure(artifact, batch, windows=windows) for artifact in opened for batch in batches]


def _why_no_cuda() -> str:
    import torch

    if torch.cuda.is_available():
        return "timing on a GPU is not built yet; use --device cpu"
    return "no CUDA device is available on this machine; use --device cpu"


def _table(rows: list[dict[str, Any]]) -> Table:
    first = rows[0]
    title = f"{first['device']}, {first['threads']} thread(s), sgemm peak {first['peak_gops']:.0f} GFLOP/s"
    # Without rules between the columns it fits 80 characters.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("artifact", "runtime", "batch", "faces/s", "iqr", "p50 ms", "p99 ms", "of peak"):
        table.add_column(heading, justify="left" if heading in ("artifact", "runtime") else "right")
    for row in rows:
        table.add_row(
            row["artifact"],
            row["runtime"].split()[0],
            str(row["batch"]),
            f"{row['faces_per_second']:,.0f}",
            f"{row['iqr']:,.0f}",
            f"{row['p50_ms']:.3f}",
            f"{row['p99_ms']:.3f}",
            f"{row['share']:.1%}",
        )
    return table


class _Commands(LazyGroup):
    lazy: ClassVar = {"train": ("benchmarks.training:train", "Faces per second of the training loops.")}


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--student", help="Time this student with random weights, exported on the spot, e.g. tiny16.")
@click.option(
    "--artifact", "artifacts", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Time this file (.onnx or .tflite, its sidecar beside it); repeat for more.",
)  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of the runtime.")
@click.option(
    "--batch", "batches", type=click.IntRange(1), multiple=True, default=BATCHES, show_default=True,
    help="Faces per call; repeat for more.",
)  # fmt: skip
@click.option(
    "--windows", type=click.IntRange(10), default=10, show_default=True,
    help="Timed windows of 50 ms or more; the figure is their median.",
)  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path), help='Write {"throughput": [rows]} here.')
@click.pass_context
@run_cli
def main(
    context: click.Context,
    student: str | None,
    artifacts: tuple[Path, ...],
    device: str,
    threads: int,
    batches: tuple[int, ...],
    windows: int,
    json_file: Path | None,
) -> None:
    """Faces per second and latency of exported models on this machine.

    Give a student's name, or files that an export wrote. Each is run in a hot loop at every batch size;
    beside its speed stands the share that it reaches of this machine's own peak, measured in the same
    process.

    \b
    python -m benchmarks.throughput --student tiny16
    python -m benchmarks.throughput --artifact student.onnx --json speed.json
    """
    if context.invoked_subcommand is not None:
        return
    if (student is None) == (not artifacts):
        raise UserError("give either --student NAME or --artifact FILE")
    if device == "cuda":
        raise UserError(_why_no_cuda())
    if student is None:
        rows = _rows(artifacts, threads, batches, windows)
    else:
        with _artifacts_of(student) as files:
            rows = _rows(files, threads, batches, windows)
    Console().print(_table(rows))
    if json_file:
        write_json(json_file, {"throughput": rows})


if __name__ == "__main__":
    main()
