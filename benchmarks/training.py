"""Faces per second of a student's training: `python -m benchmarks.throughput train --help`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import training_loops as loops
from benchmarks.peak import sgemm_gops
from faces.cli import Output, run_cli
from faces.errors import UserError
from faces.files import write_json
from faces.threads import cores
from students import create_student
from students.batches import Recipe, crop_side
from students.student import count_macs

MARGIN = 0.125


def _timed(step: loops.Step, seconds: float, device: str) -> tuple[int, float]:
    step()
    faces, began = 0, time.perf_counter()
    while True:
        faces += step()
        if device != "cpu":
            torch.cuda.synchronize()
        if (spent := time.perf_counter() - began) > seconds:
            return faces, spent


def compare(
    student: str, device: str, threads: int, batch: int, rounds: int, seconds: float, precision: str = "fp32"
) -> list[dict[str, Any]]:
    """A row for each loop; `precision` is of ours. The loops take turns, so that what else the machine does falls on
    all of them."""
    px = create_student(student).input_px
    examples = loops.synthetic(4096, crop_side(px, MARGIN), MARGIN)
    recipe = Recipe(samples=10**9, batch=batch, precision=precision, threads=threads)
    plain, one_by_one = loops.plain(student, examples, device), loops.dataloader(student, examples, device, threads)
    turns: dict[str, Callable[[], tuple[int, float]]] = {
        "ours": lambda: loops.ours(student, examples, recipe, seconds, device),
        "plain": lambda: _timed(plain, seconds, device),
        "dataloader": lambda: _timed(one_by_one, seconds, device),
    }
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for name in track([*turns] * rounds, "training", console=Console(stderr=True), transient=True):
        faces, spent = turns[name]()
        rates[name].append(faces / spent)
    # Backward costs two forwards.
    work, peak = 3 * 2 * count_macs(create_student(student), px) / 1e9, sgemm_gops(threads) if device == "cpu" else None
    return [_row(name, rates, work, peak, student, px, device, threads, batch, precision) for name in turns]


def _row(
    name: str, rates: dict[str, list[float]], work: float, peak: float | None, student: str, px: int, device: str,
    threads: int, batch: int, precision: str,
) -> dict[str, Any]:  # fmt: skip
    low, middle, high = np.percentile(rates[name], [25, 50, 75])
    return {
        "loop": name,
        "faces_per_second": float(middle),
        "iqr": float(high - low),
        # Of the rates of one turn, so that a slow minute does not count as a difference.
        "ours_is_faster": float(np.median(np.divide(rates["ours"], rates[name]))),
        "student": student,
        "input_px": px,
        "batch": batch if name == "ours" else loops.PLAIN_BATCH,
        "precision": precision if name == "ours" else "fp32",
        "device": device,
        "threads": threads,
        "torch": torch.__version__,
        "peak_gops": peak,
        "share": None if peak is None else float(middle) * work / peak,
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--student", default="tiny16", show_default=True, help="A student's name, e.g. tiny64.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads (and DataLoader workers). Default: all cores.")
@click.option(
    "--batch", type=click.IntRange(2), default=Recipe.batch, show_default=True, help="Faces a step of our loop."
)
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Of our loop."
)
@click.option("--rounds", type=click.IntRange(3), default=5, show_default=True, help="Turns of each loop.")
@click.option("--seconds", type=float, default=4.0, show_default=True, help="Length of a turn.")
@click.option("--json", "json_file", type=Output(), help='Write {"throughput": [rows]} here.')
@run_cli
def train(
    student: str, device: str, threads: int | None, batch: int, precision: str, rounds: int, seconds: float,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Faces per second of distilling a student: our loop, a plain PyTorch loop, a DataLoader.

    Degradation, forward, relational loss, backward and optimiser are inside. The loops take turns in one process;
    a row's figure is the median over its turns, `ours is faster` the median ratio within a turn.

    \b
    python -m benchmarks.throughput train --student tiny16 --json train.json
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available on this machine; use --device cpu")
    count = threads or cores()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        rows = compare(student, device, count, batch, rounds, seconds, precision)
    finally:
        torch.set_num_threads(before)
    peak = f", sgemm peak {rows[0]['peak_gops']:.0f} GFLOP/s" if rows[0]["peak_gops"] else ""
    table = Table(title=f"{student}, {device}, {count} thread(s){peak}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("loop", "precision", "batch", "faces/s", "iqr", "ours is faster", "of peak"):
        table.add_column(heading, justify="left" if heading in ("loop", "precision") else "right")
    for row in rows:
        share = "-" if row["share"] is None else f"{row['share']:.1%}"
        faster = "-" if row["loop"] == "ours" else f"{row['ours_is_faster']:.2f} x"
        table.add_row(
            row["loop"], row["precision"], str(row["batch"]), f"{row['faces_per_second']:,.0f}", f"{row['iqr']:,.0f}",
            faster, share,
        )  # fmt: skip
    Console().print(table)
    if json_file:
        write_json(json_file, {"throughput": rows})
