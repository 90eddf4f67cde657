"""Other embedders on the same clock and the same pairs: `python -m benchmarks.peers --help`."""

import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.embedders import Embedder, name_and_weights, of_artifacts, of_dlib, of_teacher
from benchmarks.machine import describe, pinned, sentence
from benchmarks.output import publish
from benchmarks.timing import run_windows
from faces import verification
from faces.cli import Output, run_cli
from faces.dataset import Faces
from faces.errors import UserError
from faces.intervals import pair_interval
from faces.sources import open_faces
from faces.verification import Pairs

Row = dict[str, Any]
SIZES: tuple[int | None, ...] = (None, 32, 16)


def measure(peer: Embedder, faces: Faces, pairs: Pairs, clock: Callable[[], float] = time.perf_counter) -> Row:
    """One row: faces/s at batch 1 and at its best of 1 and `peer.batch` on one thread, crops made beforehand, and
    accuracy with both faces at full size, 32 and 16 px."""
    needed, both = np.unique(np.concatenate([pairs.a, pairs.b]), return_inverse=True)
    some = faces.subset(needed)
    at_a, at_b = both[: len(pairs.a)], both[len(pairs.a) :]
    accuracy = {}
    for px in SIZES:
        # In parts: crops of 150 px of thousands of faces are hundreds of MB.
        parts = [some.subset(np.arange(i, min(i + 256, len(some)))) for i in range(0, len(some), 256)]
        rows = np.concatenate([peer.run(peer.crops(part, px)) for part in parts])
        right = verification.correct_by_fold(verification.similarity(rows[at_a], rows[at_b], peer.metric), pairs)
        low, high = pair_interval(right, pairs, faces.identities)
        name = "full" if px is None else f"same@{px}"
        accuracy[name] = {"accuracy": 100 * float(right.mean()), "low": 100 * low, "high": 100 * high}
    speed = {}
    for batch in sorted({1, peer.batch}):
        crops = np.resize(peer.crops(some.subset(np.arange(min(batch, len(some)))), None), (batch, *_shape(peer, some)))
        rates, _, _ = run_windows(lambda crops=crops: peer.run(crops), batch, 10, 0.05, 3.0, clock)  # type: ignore[misc]
        low, middle, high = np.percentile(rates, [25, 50, 75])
        speed[str(batch)] = {"faces_per_second": float(middle), "iqr": float(high - low)}
    best = max(one["faces_per_second"] for one in speed.values())
    return {"peer": peer.name, "parameters": peer.parameters, "macs": peer.macs, "bytes": peer.bytes,
            "metric": peer.metric, "speed": speed, "faces_per_second": best, "accuracy": accuracy,
            "same@16": accuracy["same@16"]["accuracy"]}  # fmt: skip


def _shape(peer: Embedder, faces: Faces) -> tuple[int, ...]:
    return peer.crops(faces.subset(np.arange(1)), None).shape[1:]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--artifact", "artifacts", multiple=True, type=click.Path(path_type=Path), help="Our files. Repeats.")
@click.option("--peer", "named", multiple=True, metavar="NAME[=WEIGHTS]",
              help="A teacher of the registry with its weights, e.g. mobilefacenet=FILE. Repeats.")  # fmt: skip
@click.option("--onnx", "onnx_files", multiple=True, metavar="FILE[?mean=.5,.5,.5&std=.5,.5,.5&colour=bgr]",
              help="Any ONNX embedder; mean and std are of RGB in [0, 1]. Repeats.")  # fmt: skip
@click.option("--dlib/--no-dlib", default=True, show_default=True, help="The dlib package and our reading of it.")
@click.option("--val", nargs=2, metavar="SPEC PAIRS.csv", help="Faces and fixed pairs. Default: pairs of ORL.")
@click.option("--json", "json_file", type=Output(), help="Write the rows here.")
@click.option("--markdown", "markdown_file", type=Output(), help="Write the table here.")
@click.option("--plot", "plot_file", type=Output(".svg", ".png"), help="Accuracy at 16 px against faces/s.")
@run_cli
def main(
    artifacts: tuple[Path, ...], named: tuple[str, ...], onnx_files: tuple[str, ...], dlib: bool,
    val: tuple[str, str] | None, json_file: Path | None, markdown_file: Path | None, plot_file: Path | None,
) -> None:  # fmt: skip
    """Embedders on one core of this machine and on the same pairs of faces: speed, size, accuracy with both faces at
    full size, 32 and 16 px. A peer that cannot be had is a row that says why."""
    faces = open_faces(val[0] if val else "orl")
    pairs = verification.read_pairs(Path(val[1]), faces.keys) if val else verification.make_pairs(faces.identities, 0)
    wanted = of_artifacts(artifacts)
    if dlib:
        wanted += [("dlib_resnet", partial(of_teacher, "dlib_resnet")), ("dlib package", of_dlib)]
    for peer in named:
        name, weights = name_and_weights(peer)
        wanted.append((name, partial(of_teacher, name, weights)))
    wanted += [(file, partial(of_teacher, f"onnx:{file}")) for file in onnx_files]
    rows, missing = [], []
    torch.set_num_threads(1)
    machine = describe()
    with pinned(1):
        for name, make in wanted:
            click.echo(name, err=True)
            try:
                rows.append(measure(make(), faces, pairs))
            except UserError as problem:
                missing.append({"peer": name, "not_run": str(problem)})
            except Exception as problem:
                # Anyone's file may fail in any way; what was measured before it must not be lost.
                missing.append({"peer": name, "not_run": f"{type(problem).__name__}: {problem}"})
    if not rows:
        raise UserError("; ".join(row["not_run"] for row in missing) or "no peer was asked for: see --help")
    command = shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]])
    data = f"{faces.source}, {int(pairs.same.sum())} genuine and {int((~pairs.same).sum())} impostor pairs"
    found = {"peers": rows, "not_run": missing, "data": data, "machine": machine, "command": command}
    publish(found, page(found), json_file, markdown_file)
    if plot_file:
        from benchmarks import plots

        plots.pareto(rows, plot_file, "faces_per_second", "same@16", "peer", data, "accuracy at same@16, %")


def page(found: Row) -> str:
    lines = [
        "| embedder | faces/s, batch 1 | best | parameters | multiply-accumulates | bytes | full | same@32 | same@16 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(found["peers"], key=lambda one: -one["faces_per_second"]):
        accuracy = " | ".join(
            f"{one['accuracy']:.1f} [{one['low']:.1f}, {one['high']:.1f}]" for one in row["accuracy"].values()
        )
        counts = " | ".join("-" if row[name] is None else f"{row[name]:,}" for name in ("parameters", "macs", "bytes"))
        one = row["speed"]["1"]["faces_per_second"]
        lines.append(f"| {row['peer']} | {one:,.0f} | {row['faces_per_second']:,.0f} | {counts} | {accuracy} |")
    missing = [f"Not run: {row['peer']}: {row['not_run']}" for row in found["not_run"]]
    head = f"```\n{found['command']}\n```\n\n{sentence(found['machine'])}. Pairs: {found['data']}."
    return "\n\n".join([head, "\n".join(lines), *missing]) + "\n"


if __name__ == "__main__":
    main()
