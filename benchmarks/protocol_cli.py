"""The papers' tests on folders that the user has: `python -m benchmarks.accuracy protocols --help`."""

import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import protocols as run
from benchmarks.embedders import Embedder, name_and_weights, of_artifacts, of_teacher
from benchmarks.output import publish
from benchmarks.paper_accuracy import PAPERS, REMARKS
from faces.cli import Output, run_cli
from faces.dataset import CROP_PX
from faces.errors import UserError
from faces.intervals import pair_interval
from faces.protocols import ijb, pair_lists, searches
from faces.protocols.types import PairList
from faces.sources import read_bin
from faces.verification import correct_by_fold, similarity

Test = Callable[[run.Reader, Embedder], dict[str, Any]]
_LISTS: dict[str, Callable[[Path, Path], PairList]] = {
    "lfw": pair_lists.read_lfw, "xqlfw": pair_lists.read_lfw, "calfw": pair_lists.read_two_lines,
    "cplfw": pair_lists.read_two_lines, "sllfw": pair_lists.read_two_lines, "agedb": pair_lists.read_three_columns,
}  # fmt: skip


def _bin(file: Path, sizes: tuple[int, ...], reader: run.Reader, peer: Embedder) -> dict[str, Any]:
    """A .bin set (lfw.bin, calfw.bin, agedb_30.bin, cfp_fp.bin, ...), whose images are aligned crops."""
    faces, pairs = read_bin(file, reader.colour)
    views: dict[str, tuple[int | None, int | None]] = {"full": (None, None)}
    for size in sizes:
        views |= {f"same@{size}": (size, size), f"cross@{size}": (None, size)}
    rows: dict[int | None, np.ndarray] = {}
    both: tuple[int | None, ...] = (None, *sizes)
    for px in dict.fromkeys(both):
        parts = [faces.subset(np.arange(i, min(i + 256, len(faces)))) for i in range(0, len(faces), 256)]
        rows[px] = np.concatenate([peer.run(peer.crops(part, px)) for part in parts])
    figures = {}
    for name, (first, second) in views.items():
        right = correct_by_fold(similarity(rows[first][pairs.a], rows[second][pairs.b], peer.metric), pairs)
        low, high = pair_interval(right, pairs, faces.identities)
        figures[name] = {"value": 100 * float(right.mean()), "low": 100 * low, "high": 100 * high}
    return {"pairs": len(pairs.a), "pairs_used": len(pairs.a), "images": {"read": len(faces)}, "figures": figures}


def _tests(options: dict[str, Any], sizes: tuple[int, ...]) -> dict[str, Test]:
    tests: dict[str, Test] = {}

    def add_pairs(name: str, listed: PairList) -> None:
        tests[name] = lambda reader, peer: run.verify(listed, reader, peer, sizes)

    for name, read in _LISTS.items():
        if options[name]:
            add_pairs(name, read(*map(Path, options[name])))
    for kind in ("FP", "FF"):
        if options["cfp"]:
            add_pairs(f"cfp-{kind.lower()}", pair_lists.read_cfp(Path(options["cfp"]), kind))
    for file in options["bins"]:
        if Path(file).stem in tests:
            raise UserError(f"--bin {file}: another test is called {Path(file).stem} already: rename the file")
        tests[Path(file).stem] = functools.partial(_bin, Path(file), sizes)
    if options["tinyface"]:
        tiny = searches.read_tinyface(Path(options["tinyface"]))
        tests["tinyface"] = lambda reader, peer: run.search(tiny, reader, peer)
    if options["scface"]:
        for name, one in searches.read_scface(Path(options["scface"])).items():
            tests[f"scface {name}"] = lambda reader, peer, one=one: run.search(one, reader, peer)  # type: ignore[misc]
    if options["closed_set"]:
        closed = searches.read_closed_set(Path(options["closed_set"]))
        tests["closed-set"] = lambda reader, peer: run.search(closed, reader, peer, closed_set=True)
    for name in ("ijbb", "ijbc"):
        if options[name]:
            test = ijb.read_ijb(Path(options[name]))
            tests[name] = lambda reader, peer, test=test: run.templates(test, reader, peer)  # type: ignore[misc]
    for name in ("ijbs", "briar"):
        if options[name]:
            test = ijb.read_lists(*map(Path, options[name]))
            tests[name] = lambda reader, peer, test=test: run.templates(test, reader, peer)  # type: ignore[misc]
    return tests


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for name in ("ijbs", "briar"):
        text = "Images, gallery and probe lists (template,subject,medium,path)."
        function = click.option(f"--{name}", nargs=3, metavar="FOLDER GALLERY.csv PROBES.csv", help=text)(function)
    for name in ("ijbb", "ijbc", "scface", "tinyface", "closed-set", "cfp"):
        function = click.option(f"--{name}", metavar="FOLDER", help="In its own layout.")(function)
    for name in reversed(_LISTS):
        function = click.option(f"--{name}", nargs=2, metavar="FOLDER PAIRS", help="Images and the list.")(function)
    return function


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--artifact", "artifacts", multiple=True, type=click.Path(path_type=Path), help="An exported file. Repeats."
)
@click.option("--teacher", "teachers", multiple=True, metavar="NAME[=WEIGHTS]", help="A teacher, onnx:FILE. Repeats.")
@_options
@click.option(
    "--bin", "bins", multiple=True, metavar="FILE", help="An InsightFace .bin set, named by its file. Repeats."
)
@click.option("--px", "sizes", multiple=True, type=click.IntRange(4, CROP_PX), default=(32, 16), show_default=True)
@click.option("--detector", default="dlib", show_default=True, help="dlib, or yunet:FILE.")
@click.option("--aligned", is_flag=True, help="The images are ArcFace crops already.")
@click.option("--colour", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True)
@click.option("--json", "json_file", type=Output(), help="Write everything here.")
@click.option("--markdown", "markdown_file", type=Output(), help="Write the table here.")
@run_cli
def protocols(
    artifacts: tuple[Path, ...], teachers: tuple[str, ...], sizes: tuple[int, ...], detector: str, aligned: bool,
    colour: str, json_file: Path | None, markdown_file: Path | None, **options: Any,
) -> None:  # fmt: skip
    """The papers' tests, each on the folder that you have of it, one table with the papers' own numbers beside.

    Images that are missing, unreadable or in which no face is found are counted in the table and left out; probes
    among them count as wrong.
    """
    tests = _tests(options, sizes)
    if not tests:
        raise UserError("no test was given: name the folder of at least one, e.g. --lfw FOLDER PAIRS (see --help)")
    if not artifacts and not teachers:
        raise UserError("nothing to test was given: --artifact FILE or --teacher NAME")
    peers = [make() for _, make in of_artifacts(artifacts)]
    peers += [of_teacher(*name_and_weights(one)) for one in teachers]
    torch.set_num_threads(1)
    rows, failed = list[dict[str, Any]](), list[str]()
    for peer in peers:
        for name, test in tests.items():
            click.echo(f"{peer.name}: {name}", err=True)
            try:
                row = test(run.Reader(detector, aligned, colour), peer)
            except UserError as problem:
                # What was measured before must not be lost.
                failed.append(str(problem))
                row = {"pairs": 0, "pairs_used": 0, "images": {"read": 0}, "figures": {}, "reason": str(problem)}
            rows.append({"model": peer.name, "test": name} | row)
    command = shlex.join(["python", "-m", "benchmarks.accuracy", *sys.argv[1:]])
    found = {"protocols": rows, "command": command, "detector": "aligned" if aligned else detector}
    publish(found, page(found), json_file, markdown_file)
    if failed:
        raise UserError("; ".join(dict.fromkeys(failed)))


def page(found: dict[str, Any]) -> str:
    """The table; a paper's figure without a row of ours is not in it."""
    lines = ["| model | test | figure | % | papers | left out |", "|---|---|---|--:|---|---|"]
    for row in found["protocols"]:
        unit = next(name for name in ("pairs", "probes", "templates") if name in row)
        lost = {reason: count for reason, count in row["images"].items() if reason != "read"}
        left = f"{row[unit] - row[f'{unit}_used']} of {row[unit]} {unit}"
        left += "".join(f", {count} images {reason}" for reason, count in lost.items())
        for name, one in row["figures"].items() or [
            ("-", {"value": None, "reason": row.get("reason", "nothing left")})
        ]:
            interval = f" [{one['low']:.2f}, {one['high']:.2f}]" if "low" in one else ""
            value = f"{one['value']:.2f}{interval}" if one["value"] is not None else one["reason"]
            papers = "; ".join(f"{figure} ({who})" for who, figure in PAPERS.get((row["test"], name), ()))
            lines.append(f"| {row['model']} | {row['test']} | {name} | {value} | {papers or '-'} | {left} |")
    return f"```\n{found['command']}\n```\n\n" + "\n".join(lines) + "\n\n" + "\n\n".join(REMARKS) + "\n"
