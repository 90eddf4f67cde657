"""Faces per second and latency of exported models: `python -m benchmarks.throughput --help`."""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any, ClassVar

import click
from rich.console import Console

from benchmarks import loadgen as mlperf
from benchmarks import matrix, speed_table
from benchmarks.cpu_runtimes import RUNTIMES, open_runner, runtimes_of
from benchmarks.lazy import LazyGroup, refuse_before
from benchmarks.machine import cores, describe, pinned, sentence
from benchmarks.noise import verdict
from benchmarks.students import artifacts_of
from benchmarks.timing import measure
from export.targets import PRECISIONS
from faces.cli import Output, run_cli
from faces.errors import UserError
from faces.files import write_json, write_text

__all__ = ["main", "measure"]

BATCHES = (1, 32, 256)
FULL_BATCHES = (1, 8, 32, 256, 1024)


def _why_no_cuda() -> str:
    import torch

    if torch.cuda.is_available():
        return "timing on a GPU is `python -m benchmarks gpu`; use --device cpu here"
    return "no CUDA device is available on this machine; use --device cpu"


class _Commands(LazyGroup):
    lazy: ClassVar = {
        "train": ("benchmarks.training:train", "Faces per second of the training loops."),
        "scale": ("benchmarks.scale:scale", "Train on a made-up set of the paper's size: rate, memory, time."),
    }


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--student", "students", multiple=True, metavar="NAME",
              help="Time this student with random weights, exported on the spot, e.g. tiny16; repeat.")  # fmt: skip
@click.option(
    "--artifact", "artifacts", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Time this file (.onnx or .tflite, its sidecar beside it); repeat for more.",
)  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), multiple=True,
              help="Threads of the runtime; repeat for more. Default: 1; with --full also all cores.")  # fmt: skip
@click.option(
    "--batch", "batches", type=click.IntRange(1), multiple=True,
    help=f"Faces per call; repeat for more. Default: {', '.join(map(str, BATCHES))}; with --full "
    f"{', '.join(map(str, FULL_BATCHES))}.",
)  # fmt: skip
@click.option(
    "--windows", type=click.IntRange(10), default=10, show_default=True,
    help="Timed windows of 50 ms or more; the figure is their median.",
)  # fmt: skip
@click.option("--json", "json_file", type=Output(), help='Write {"throughput": [rows]} here.')
@click.option("--full", is_flag=True,
              help="Every runtime at hand, fp32, fp16 and int8, pinned, two passes, percentiles hot and after a pause, "
              "pre-processing inside too, activation memory.")  # fmt: skip
@click.option("--runtime", "runtimes", multiple=True, type=click.Choice(list(RUNTIMES)), help="Only these; repeat.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS), help="Only these; repeat.")
@click.option("--pin/--no-pin", default=None, help="Hold the process to the idlest cores. Default: with --full.")
@click.option("--preprocessing/--no-preprocessing", default=None, help="Rows with it inside. Default: with --full.")
@click.option("--passes", type=click.IntRange(1, 2), help="Measure everything so often. Default: 1; with --full 2.")
@click.option("--memory/--no-memory", default=None, help="Activation bytes a face. Default: with --full.")
@click.option("--loadgen", is_flag=True, help="MLPerf's LoadGen too: SingleStream, and Offline at the largest batch.")
@click.option("--loadgen-seconds", type=click.FloatRange(1),
              help=f"Least length of a run, default 10; the rule book: {mlperf.OFFICIAL_SECONDS}.")  # fmt: skip
@click.option("--markdown", "markdown_file", type=Output(), help="Write the tables here.")
@click.option("--plot", "plot_file", type=Output(".svg", ".png"), help="Draw speed by batch here (.svg or .png).")
@click.pass_context
@run_cli
def main(
    context: click.Context, students: tuple[str, ...], artifacts: tuple[Path, ...], device: str,
    threads: tuple[int, ...], batches: tuple[int, ...], windows: int, json_file: Path | None, full: bool,
    runtimes: tuple[str, ...], precisions: tuple[str, ...], pin: bool | None, preprocessing: bool | None,
    passes: int | None, memory: bool | None, loadgen: bool, loadgen_seconds: float | None, markdown_file: Path | None,
    plot_file: Path | None,
) -> None:  # fmt: skip
    """Faces per second and latency of exported models on this machine.

    Give a student's name, or files that an export wrote. Each is run in a hot loop at every batch size;
    beside its speed stands the share that it reaches of this machine's own peak, measured in the same
    process.

    \b
    python -m benchmarks.throughput --student tiny16
    python -m benchmarks.throughput --artifact student.onnx --json speed.json
    python -m benchmarks.throughput --full --student tiny16 --json speed.json --markdown speed.md
    """
    if context.invoked_subcommand is not None:
        refuse_before(context)
        return
    if loadgen_seconds is not None and not loadgen:
        raise UserError("--loadgen-seconds is the length of LoadGen's runs: give --loadgen too")
    if bool(students) == bool(artifacts):
        raise UserError("give either --student NAME or --artifact FILE")
    if device == "cuda":
        raise UserError(_why_no_cuda())
    how = matrix.Matrix(
        runtimes=tuple(dict.fromkeys(runtimes)) or (tuple(RUNTIMES) if full else ()),
        threads=tuple(dict.fromkeys(threads)) or (tuple(dict.fromkeys((1, len(cores())))) if full else (1,)),
        batches=tuple(dict.fromkeys(batches)) or (FULL_BATCHES if full else BATCHES),
        windows=windows,
        passes=passes or (2 if full else 1),
        pin=full if pin is None else pin,
        preprocessing=full if preprocessing is None else preprocessing,
        progress=(lambda what: click.echo(what, err=True)) if full else (lambda what: None),
    )
    with contextlib.ExitStack() as stack:
        files = _wanted(artifacts, precisions)
        for student in students:
            files += stack.enter_context(artifacts_of(student, precisions or (PRECISIONS if full else ("fp32",))))
        found = _measured(files, how, full, memory, mlperf.SCENARIOS if loadgen else (), loadgen_seconds or 10)
    _show(found, full)
    if json_file:
        write_json(json_file, found)
    if markdown_file:
        write_text(markdown_file, _page(found))
    if plot_file:
        # Here, as matplotlib takes a second.
        from benchmarks import plots

        plots.speed(found["throughput"], plot_file)


def _wanted(artifacts: tuple[Path, ...], precisions: tuple[str, ...]) -> list[Path]:
    if not precisions:
        return list(artifacts)
    from export import sidecar

    kept = [file for file in artifacts if sidecar.read(file).precision in precisions]
    if artifacts and not kept:
        raise UserError(f"none of the files is {' or '.join(precisions)}: leave --precision out, or name others")
    return kept


def _measured(
    files: list[Path], how: matrix.Matrix, full: bool, memory: bool | None, scenarios: tuple[str, ...], seconds: float
) -> dict[str, Any]:
    if not full and not how.runtimes and not how.pin and not how.preprocessing and how.passes == 1:
        # All are opened first, so that a wrong file is told before the first is timed.
        opened = [open_runner(file, "", threads) for threads in how.threads for file in files]
        rows = [measure(artifact, batch, windows=how.windows) for artifact in opened for batch in how.batches]
        found: dict[str, Any] = {"throughput": rows}
    else:
        command = shlex.join(["python", "-m", "benchmarks.throughput", *sys.argv[1:]])
        machine = describe()
        rows, missing = matrix.run(files, how)
        found = {"throughput": rows, "not_run": missing, "machine": machine, "command": command}
        if how.passes == 2:
            found["noise"] = verdict(rows)
    if full if memory is None else memory:
        found["memory"] = matrix.memory(files, how.runtimes)
    if scenarios:
        found["loadgen"] = _mlperf(files, how, scenarios, seconds)
    return found


def _mlperf(files: list[Path], how: matrix.Matrix, scenarios: tuple[str, ...], seconds: float) -> list[dict[str, Any]]:
    rows = []
    with pinned(how.threads[0], how.pin):
        for file in files:
            for runtime, why in runtimes_of(file, how.runtimes):
                if why is None:
                    runner = open_runner(file, runtime, how.threads[0])
                    rows += [mlperf.run(runner, scenario, max(how.batches), seconds) for scenario in scenarios]
    return rows


def _show(found: dict[str, Any], full: bool) -> None:
    rows = found["throughput"]
    console = Console()
    if full:
        # Wide, for a pager: a table cut at 80 columns would hide the shares.
        click.echo(_page(found))
        return
    for threads in dict.fromkeys(row["threads"] for row in rows):
        console.print(speed_table.terminal([row for row in rows if row["threads"] == threads]))
    for row in found.get("not_run", []):
        click.echo(f"not run: {row['artifact']} in {row['runtime']}: {row['not_run']}")
    if "noise" in found:
        click.echo(found["noise"]["text"])
    for text in (speed_table.memory(found.get("memory", [])), speed_table.loadgen(found.get("loadgen", []))):
        if text:
            click.echo(text)


def _page(found: dict[str, Any]) -> str:
    rows = found["throughput"]
    parts = []
    if "command" in found:
        parts.append(f"```\n{found['command']}\n```\n\n{sentence(found['machine'])}")
    peaks = {(row["threads"], row.get("arithmetic", "fp32")): row["peak_gops"] for row in rows}
    parts.append(
        "Peak measured in the same process: "
        + ", ".join(f"{name} {gops:,.0f} GOP/s on {threads} thread(s)" for (threads, name), gops in peaks.items())
    )
    if "noise" in found:
        parts.append(f"Noise: {found['noise']['text']}.")
    parts += [speed_table.against_paper(rows, found.get("memory", [])), speed_table.markdown(rows)]
    parts += [speed_table.memory(found.get("memory", [])), speed_table.loadgen(found.get("loadgen", []))]
    parts += [f"Not run: {row['artifact']} in {row['runtime']}: {row['not_run']}" for row in found.get("not_run", [])]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


if __name__ == "__main__":
    main()
