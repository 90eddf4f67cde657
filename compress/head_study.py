"""A student's softmax layer fine-tuned on a target set (bridge distillation, section IV-C and Figure 6), and the same
network trained there from scratch: `python -m compress.study head --help`."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.output import cell, table
from compress.config import Config, Distill, load_config
from compress.distill import STUDENT, weights_file
from compress.head_figure import draw
from compress.head_rows import AS_IS, FINETUNED, SCRATCH, Heads, Target, affordable, split_images
from compress.idle import refuse_idle
from compress.part_scores import SEEDS, check_unused, people_summary
from compress.run import Run, progress_bar
from faces.cli import Output, run_cli, table_console
from faces.dataset import Faces, concatenate
from faces.errors import UserError
from faces.files import whole, write_json, write_text
from faces.sources import open_faces, recognise
from students.registry import create_student, load_weights
from students.train import check_sizes

IMAGES = (1, 5, 10, 25)
"""Training images a person; the paper has 25, and 5 to test on."""
_PEOPLE = 5
READS = ("distill.class_loss", "distill.class_weight")
"""What --finetune-head reads of the pipeline's settings in every mode: the network from scratch learns by labels."""


@click.command()
@click.option("--student", default="tiny16", show_default=True,
              help="By name, as in the pipeline; tiny32 sees faces of 32 px.")  # fmt: skip
@click.option("--student-weights", "files", multiple=True, default=("zoo",), show_default=True, metavar="FILE|zoo",
              help="A trained student: a safetensors file, or the package's own. Repeats: one curve each.")  # fmt: skip
@click.option("--data", "specs", multiple=True, required=True, metavar="SPEC",
              help="The target set: faces of named people. Repeats.")  # fmt: skip
@click.option("--images", "counts", multiple=True, type=click.IntRange(1), metavar="N",
              help="Training images a person; only people with more than the largest count take part. Repeats. "
              f"Default: those of {', '.join(map(str, IMAGES))} that leave {_PEOPLE} people.")  # fmt: skip
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0, SEEDS - 1), default=(0, 1, 2),
              show_default=True,
              help="Train these; the table is the mean over all that are kept. Repeats.")  # fmt: skip
@click.option("--read-only", is_flag=True, help="Train nothing: write the table of what was trained.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="As in the pipeline, of distill.*: for the network from scratch.")  # fmt: skip
@click.option("--folder", type=Output(folder=True), default=Path("runs/head"), show_default=True,
              help="Where rows are kept.")  # fmt: skip
@click.option("--out", type=Output(folder=True), default=Path("benchmarks/results/students"), show_default=True,
              help="Where STUDENT-head.json, .md and .svg go.")  # fmt: skip
@run_cli
def head(
    student: str, files: tuple[str, ...], specs: tuple[str, ...], counts: tuple[int, ...], seeds: tuple[int, ...],
    read_only: bool, settings: tuple[str, ...], folder: Path, out: Path,
) -> None:  # fmt: skip
    """Fine-tune only a student's softmax layer on a target set, by number of training images a person.

    \b
    as it is         nearest mean of a person's training images, nothing is trained
    head fine-tuned  a softmax layer on the student's features, which stay as they are
    from scratch     the same network trained on these images alone (mode c), and such a layer on it

    Tested on other images of the same people (closed-set): top-1 and top-5 error with intervals and, in the JSON file,
    differences from the network from scratch, image by image. People are resampled.

    \b
    python -m compress.study head --data TARGET.tar --student-weights zoo --student-weights MINE.safetensors

    A row is kept as it ends, so a stopped command continues; rows that were not trained say so.
    """
    plain = load_config("quick", None, {"distill.student": student}, ())
    config = load_config("quick", None, {"distill.student": student}, settings)
    check_unused(config, plain)
    others = [(one.adapt, one.distill.mode, one.distill.weights) for one in (config, plain)]
    if others[0] != others[1]:
        raise UserError(
            "--set adapt, distill.mode, distill.weights: this study has no teacher, and starts from --student-weights; "
            "leave it out"
        )
    refuse_idle([dataclasses.replace(config, distill=dataclasses.replace(config.distill, mode="c"))], settings)
    named = {Path(name).name: _weights(config, name) for name in files}
    if len(named) < len(files):
        raise UserError(f"two of --student-weights have the same name: {', '.join(files)}")
    check_sizes(create_student(student), config.distill)
    for file in named.values():
        load_weights(create_student(student), file)
    target, images = open_target(concatenate([open_faces(spec) for spec in specs]), counts)
    told = measure(config, named, target, images, seeds, folder, read_only, kept=range(SEEDS))
    told["data"] = [Path(spec).name for spec in specs]
    write(told, out, f"{student}-head")


def check(spec: str) -> None:
    """UserError for what can be known to be wrong before a run whose head will be fine-tuned."""
    next(recognise(spec)[0](), None)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("--finetune-head trains on one process: run compress.study head on the student afterwards")


def after_run(run: Run, spec: str) -> None:
    """The same for the student of an ended run: head.json, head.md and head.svg in the run folder, and the fitted layer
    in head.npz: names (P,), weight (P, 128) and bias (P,), which take the student's feature.

    The network from scratch sees no more faces than the default of `distill.samples`, as the set is small.
    """
    data, how = run.config.data, run.config.distill
    config = dataclasses.replace(
        run.config, distill=dataclasses.replace(how, samples=min(how.samples, Distill.samples))
    )
    target, images = open_target(open_faces(spec, detector=data.detector, aligned=data.aligned), ())
    folder, weights, seed = run.path("work/head"), run.path(STUDENT), run.config.seed
    told = measure(config, {"student": weights}, target, images, (seed,), folder)
    told["data"] = [Path(spec).name]
    write(told, run.folder, "head")
    kept = Heads(config, target, folder).read(FINETUNED, weights, max(images), seed)
    assert kept is not None
    with whole(run.path("head.npz")) as temporary:
        np.savez(temporary.open("wb"), names=np.array(target.names), weight=kept["weight"], bias=kept["bias"])


def _weights(config: Config, name: str) -> Path:
    file = weights_file(dataclasses.replace(config.distill, weights=name))
    if file is None or not Path(file).is_file():
        raise UserError(f"no file {name}")
    return Path(file)


def open_target(faces: Faces, counts: tuple[int, ...]) -> tuple[Target, list[int]]:
    """The split of a target set, and the numbers of training images: `counts`, or those of IMAGES that leave people
    enough. UserError where there are too few people or images."""
    images = sorted(set(counts)) or affordable(faces, IMAGES, _PEOPLE)
    if not images:
        raise UserError(
            f"{faces.source}: fewer than {_PEOPLE} people have two images; a softmax layer needs some to learn from "
            "and others to be tested on"
        )
    return split_images(faces, max(images)), images


def measure(
    config: Config, weights: dict[str, Path], target: Target, images: list[int], seeds: tuple[int, ...], folder: Path,
    read_only: bool = False, kept: Iterable[int] = (),
) -> dict[str, Any]:  # fmt: skip
    """Run what has not been run of `seeds`, and tell these and those of `kept` that were run before: what head.json
    holds."""
    told = sorted({*seeds, *kept})
    heads = Heads(config, target, folder)
    rows = [(name, row, file) for name, file in weights.items() for row in (AS_IS, FINETUNED)]
    named: list[tuple[str, str, Path | None]] = [*rows, ("", SCRATCH, None)]
    work = [] if read_only else [(row, file, n, seed) for n in images for _, row, file in named for seed in seeds]
    with progress_bar(Console(stderr=True), "heads", len(work)) as advance:
        for one in work:
            heads.run(*one)
            advance(1)
    return {
        "title": "A head fine-tuned on a target set (bridge distillation, Figure 6)",
        "protocol": "closed-set", "student": config.distill.student, "samples": config.distill.samples,
        "people": len(target.names), "test_images": len(target.test), "baseline": SCRATCH,
        "rows": [_entry(heads, name, row, file, n, told) for name, row, file in named for n in images],
    }  # fmt: skip


def _entry(heads: Heads, name: str, row: str, file: Path | None, images: int, told: list[int]) -> dict[str, Any]:
    seeds, mine = _errors(heads, row, file, images, told)
    baseline = _errors(heads, SCRATCH, None, images, told)[1] if row != SCRATCH else {}
    found: dict[str, Any] = {"row": row, "weights": name, "images": images, "seeds": seeds}
    for top, values in mine.items():
        found[top] = people_summary(values, baseline.get(top), heads.target.person)
    return found


def _errors(
    heads: Heads, row: str, file: Path | None, images: int, told: list[int]
) -> tuple[list[int], dict[str, np.ndarray]]:
    """Those of the seeds that were run, and the share of them that gets each test image wrong, (T,)."""
    there = {seed: kept for seed in told if (kept := heads.read(row, file, images, seed)) is not None}
    if not there:
        return [], {}
    ranks = np.stack([kept["ranks"] for kept in there.values()])
    return list(there), {f"top{top}": (ranks >= top).mean(0) for top in (1, 5)}


def write(told: dict[str, Any], folder: Path, name: str) -> None:
    """FOLDER/NAME.json, .md and .svg, and the table on the screen."""
    write_json(folder / f"{name}.json", told)
    text = _markdown(told)
    write_text(folder / f"{name}.md", text)
    draw(told, folder / f"{name}.svg")
    table_console().print(Markdown(text))


def _markdown(told: dict[str, Any]) -> str:
    images = list(dict.fromkeys(row["images"] for row in told["rows"]))
    lines = [
        f"### {told['title']}",
        "",
        f"{told['student']}, {told['people']} people of {' + '.join(told['data'])}, closed-set: "
        f"{told['test_images']:,} other images of theirs, who each of them is. Error in %, 95% intervals, mean over "
        f"the seeds, by training images a person; `{SCRATCH}` saw {told['samples']:,} versions of these alone.",
    ]
    for top in ("top1", "top5"):
        lines += ["", f"top-{top[-1]} error:", ""]
        body: dict[tuple[str, str], list[str]] = {}
        for row in told["rows"]:
            text = cell(row[top]) if row["seeds"] else "not run"
            body.setdefault((row["row"], row["weights"]), []).append(text)
        names = [[f"{weights}, {row}" if weights else row, *cells] for (row, weights), cells in body.items()]
        lines += table(["network", *(f"{n} image{'s' if n > 1 else ''}" for n in images)], names)
    seeds = sorted({seed for row in told["rows"] for seed in row["seeds"]})
    return "\n".join([*lines, "", f"Seeds: {', '.join(map(str, seeds)) or 'none'}."]) + "\n"
