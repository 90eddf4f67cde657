"""Every row that was asked for: files x runtimes x threads x batches, in one or two passes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cpu_runtimes import Runner, capabilities, installed, open_runner, runtimes_of
from benchmarks.latency import BYTES, CROP, full_row, with_preprocessing
from benchmarks.machine import pinned
from benchmarks.memory import activations, grown_bytes
from benchmarks.noise import joined
from faces.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Matrix:
    """What is timed. runtimes: empty = the usual one of each file; preprocessing: rows with it inside, too."""

    runtimes: Sequence[str] = ()
    threads: Sequence[int] = (1,)
    batches: Sequence[int] = (1, 32, 256)
    windows: int = 10
    passes: int = 1
    pin: bool = True
    preprocessing: bool = False
    progress: Callable[[str], None] = field(default=lambda what: None)


def run(files: Sequence[Path], how: Matrix) -> tuple[list[Row], list[Row]]:
    """(rows, what was not run and why). All files are opened before the first is timed."""
    if "openvino" in how.runtimes and installed("openvino"):
        # OpenVINO counts the cores once, at its first use: before the process is held to some of them.
        capabilities()
    passes: list[list[Row]] = []
    missing: list[Row] = []
    for number in range(how.passes):
        rows: list[Row] = []
        for threads in how.threads:
            with pinned(threads, how.pin) as cores:
                found, missing = _runners(files, how.runtimes, threads)
                for runner in found:
                    how.progress(f"pass {number + 1}: {runner.path.name}, {runner.runtime}, {threads} thread(s)")
                    rows += _rows(runner, how, cores)
        passes.append(rows)
    return (joined(*passes) if len(passes) == 2 else passes[0]), missing


def _rows(runner: Runner, how: Matrix, cores: list[int]) -> Iterator[Row]:
    for batch in how.batches:
        yield full_row(runner, batch, cores, windows=how.windows)
    if how.preprocessing:
        # At the ends: a batch of 1 as in a camera, and the largest but one as in a folder of files.
        for batch in dict.fromkeys((min(how.batches), sorted(how.batches)[-2:][0])):
            for what in (BYTES, CROP):
                yield with_preprocessing(runner, batch, cores, what, windows=how.windows)


def _runners(files: Sequence[Path], runtimes: Sequence[str], threads: int) -> tuple[list[Runner], list[Row]]:
    runners: list[Runner] = []
    missing: list[Row] = []
    for file in files:
        for runtime, why in runtimes_of(file, runtimes):
            if why is not None:
                missing.append({"artifact": file.name, "runtime": runtime, "not_run": why})
                continue
            runners.append(runner := open_runner(file, runtime, threads))
            if runtime == "openvino" and runner.sidecar.precision == "fp32":
                try:
                    runners.append(open_runner(file, runtime, threads, "bf16"))
                except UserError as problem:
                    missing.append({"artifact": file.name, "runtime": "openvino bf16", "not_run": str(problem)})
    if not runners:
        raise UserError(f"none of the runtimes asked for ({', '.join(runtimes)}) runs these files here")
    return runners, missing


def memory(files: Sequence[Path], runtimes: Sequence[str]) -> list[Row]:
    """Activation bytes a face of each file and runtime: of the graph (ONNX files), and as the process grew."""
    rows: list[Row] = []
    for file in files:
        for runtime, why in runtimes_of(file, runtimes):
            if why is not None:
                continue
            runner = open_runner(file, runtime, 1)
            px = runner.sidecar.input.px
            row: Row = {"artifact": file.name, "runtime": runner.runtime, "input_px": px}
            if file.suffix == ".onnx" and runner.sidecar.precision == "fp32":
                row |= activations(file, px)
            rows.append(row | {"grown_bytes": grown_bytes(file, runtime)})
    return rows
