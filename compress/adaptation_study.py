"""What step 1 is worth: bridge distillation, Figure 3, and the same cases on the fixed pairs of unseen people."""

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.markdown import Markdown

from benchmarks.output import table
from compress.adaptation_figure import draw
from compress.adaptation_rows import CASES, PROPOSED, Case, Study
from compress.config import load_config
from compress.part_scores import (
    METRICS,
    SEEDS,
    check_models,
    check_unused,
    mean_values,
    people_summary,
    summary,
    two_cells,
)
from faces.cli import Output, run_cli, table_console
from faces.dataset import check_strangers, concatenate
from faces.files import write_json, write_text
from faces.parts import open_parts
from faces.sources import open_faces


@click.command()
@click.option("--teacher", "teachers", multiple=True, default=("dlib_resnet",), show_default=True, metavar="NAME",
              help="As in the pipeline, also several joined by +. Repeats: all cases for each.")  # fmt: skip
@click.option("--student", default="tiny16", show_default=True,
              help="By name, as in the pipeline; tiny32 sees faces of 32 px.")  # fmt: skip
@click.option("--data", "specs", multiple=True, required=True, metavar="SPEC",
              help="Faces to learn from, most of them of named people. Repeats.")  # fmt: skip
@click.option("--val", "vals", nargs=2, multiple=True, required=True, metavar="SPEC PAIRS.csv",
              help="Other people to measure on, and their fixed pairs. Repeats.")  # fmt: skip
@click.option("--row", "names", multiple=True, type=click.Choice([case.name for case in CASES]), metavar="NAME",
              help="Train only these cases. Repeats. "
              f"Default: all of {'; '.join(case.name for case in CASES)}.")  # fmt: skip
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0, SEEDS - 1), default=(0, 1, 2),
              show_default=True,
              help="Train these; the table is the mean over all that are kept. Repeats.")  # fmt: skip
@click.option("--read-only", is_flag=True, help="Train nothing: write the table of what was trained.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="As in the pipeline, for all rows, e.g. distill.samples=200000 or distill.loss=regression (the "
              "paper's).")  # fmt: skip
@click.option("--folder", type=Output(folder=True), default=Path("runs/modes"), show_default=True,
              help="Where rows and teachers' features are kept, the latter for the tables of modes too.")  # fmt: skip
@click.option("--out", type=Output(folder=True), default=Path("benchmarks/results/students"), show_default=True,
              help="Where adaptation.json, .md and .svg go.")  # fmt: skip
@run_cli
def adaptation(
    teachers: tuple[str, ...], student: str, specs: tuple[str, ...], vals: tuple[tuple[str, str], ...],
    names: tuple[str, ...], seeds: tuple[int, ...], read_only: bool, settings: tuple[str, ...], folder: Path, out: Path,
) -> None:  # fmt: skip
    """Ask what adapting the teacher's feature to your faces is worth (step 1): Figure 3 of bridge distillation.

    The people of --data are split in halves: the public ones, on whom everything is trained, and the private ones.
    Of each public person a fifth of the images is held out.

    \b
    no cross-dataset step             the student learns the teacher's own feature
    compression without distillation  adapted by the labels alone (equation 2)
    proposed, equation 1 alone        and by the teacher's re-fitted softmax (equations 1 to 3)
    proposed                          and keeping the teacher's similarities (adapt.keep; ours)
    mixed                             the same, and step 1 sees the private people too
    labels alone                      no teacher (mode c)

    Measured with intervals on the fixed pairs of --val (accuracy, TPR at FPR 10%; `cross`: the first face embedded by
    the adapted teacher at full size) and, as in the figure, on the held-out images, marked closed-set: who is it of
    the training people? `full` is the adaptation's classifier, the other a softmax layer on the student's features.

    \b
    python -m compress.study adaptation --data TRAIN.tar --val VAL.tar PAIRS.csv --set distill.samples=200000

    A row is kept as it ends, so a stopped command continues; rows that were not trained say so.
    """
    options = {"teacher.name": teachers[0], "distill.student": student}
    config = load_config("standard", None, options, settings)
    check_unused(config, load_config("standard", None, options, ()))
    check_models(config, teachers, read_only)
    parts = open_parts(vals)
    train = concatenate([open_faces(spec) for spec in specs])
    check_strangers(train, *(part.faces for part in parts))
    study = Study(config, train, parts, folder)
    rows = [(case, teacher) for teacher in teachers for case in CASES if case.teacher]
    rows += [(case, teachers[0]) for case in CASES if not case.teacher]
    work = [(case, teacher, seed) for seed in seeds for case, teacher in rows if not names or case.name in names]
    for case, teacher, seed in () if read_only else work:
        click.echo(f"{case.name}, {_short(teacher) if case.teacher else 'no teacher'}, seed {seed}", err=True)
        study.run(case, teacher, seed)
    split = study.split
    told = {
        "title": "Adapting the teacher's feature (bridge distillation, Figure 3)", "student": student,
        "teachers": [_short(teacher) for teacher in teachers], "baseline": PROPOSED,
        "samples": config.distill.samples, "loss": config.distill.loss,
        "adapt": dataclasses.asdict(config.adapt), "data": [Path(spec).name for spec in specs],
        "split": {
            "people": len(np.unique(study.labels[split.learn][study.labels[split.learn] >= 0])),
            "learn": len(split.learn), "held": len(split.held), "private": len(split.private),
            "private_people": len(train.subset(split.private).names),
        },
        "rows": [_entry(study, case, teacher) for case, teacher in rows],
    }  # fmt: skip
    write_json(out / "adaptation.json", told)
    text = _markdown(told, [part.name for part in parts])
    write_text(out / "adaptation.md", text)
    draw(told, out / "adaptation.svg")
    table_console().print(Markdown(text))


def _short(teacher: str) -> str:
    """Without the folder of a file."""
    return "+".join(
        f"{one.partition(':')[0]}:{Path(one).name}" if one.startswith("onnx:") else one for one in teacher.split("+")
    )


def _entry(study: Study, case: Case, teacher: str) -> dict[str, Any]:
    seeds, mine = _values(study, case, teacher)
    _, baseline = _values(study, next(one for one in CASES if one.name == PROPOSED), teacher)
    if case.name == PROPOSED:
        baseline = {}
    found: dict[str, Any] = {"row": case.name, "teacher": _short(teacher) if case.teacher else None, "seeds": seeds,
                             "closed_set": {}, "parts": {part.name: {} for part in study.parts}}  # fmt: skip
    named = {part.name: part for part in study.parts}
    people = study.labels[study.split.held]
    for name, values in mine.items():
        part, protocol = name.split("/")
        if part in named:
            found["parts"][part][protocol] = summary(values, baseline.get(name), named[part])
        else:
            plain = baseline.get(name, {}).get("accuracy")
            found["closed_set"][protocol] = people_summary(values["accuracy"], plain, people)
    return found


def _values(study: Study, case: Case, teacher: str) -> tuple[list[int], dict[str, dict[str, np.ndarray]]]:
    """The seeds that were trained, and the mean over them of each protocol's values by metric."""
    there = {seed: kept for seed in range(SEEDS) if (kept := study.read(case, teacher, seed)) is not None}
    if not there:
        return [], {}
    pairs = {part.name: part.pairs for part in study.parts}
    found = {}
    for name in next(iter(there.values())):
        each, part = [kept[name] for kept in there.values()], name.split("/")[0]
        found[name] = mean_values(each, pairs[part]) if part in pairs else {"accuracy": np.mean(each, axis=0)}
    return list(there), found


def _markdown(told: dict[str, Any], parts: list[str]) -> str:
    split = told["split"]
    lines = [
        f"### {told['title']}",
        "",
        f"{told['student']}, {told['loss']} loss, {told['samples']:,} degraded faces seen by each student, out of "
        f"{split['learn']:,} faces of {split['people']:,} public people (and unlabelled ones where there are any); "
        f"`mixed` adapts to {split['private']:,} faces of {split['private_people']:,} private people too. %, 95% "
        f"intervals, differences from `{told['baseline']}` face by face and pair by pair, mean over the seeds.",
        "",
        f"closed-set: {split['held']:,} held-out images of the public people, who each of them is.",
        "",
        *_table(told["rows"], "closed_set", None),
    ]
    for part in parts:
        for metric, word in METRICS.items():
            if any(metric in one for row in told["rows"] for one in row["parts"][part].values()):
                lines += ["", f"`{part}`{word}:", "", *_table(told["rows"], part, metric)]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]], part: str, metric: str | None) -> list[str]:
    """One Markdown table: a part's metric by protocol, or the closed set."""

    def held(row: dict[str, Any]) -> dict[str, Any]:
        if metric is None:
            return row["closed_set"]
        return {protocol: one[metric] for protocol, one in row["parts"][part].items() if metric in one}

    protocols = list(dict.fromkeys(name for row in rows for name in held(row)))
    mark = "closed-set, " if metric is None else ""
    heads = ["row", "teacher", "seeds", *(text for p in protocols for text in (mark + p, "points from proposed"))]
    body = []
    for row in rows:
        cells = [text for p in protocols for text in two_cells(held(row).get(p))]
        if not row["seeds"]:
            cells = ["not run", *["-"] * (2 * len(protocols) - 1)]
        body.append([row["row"], row["teacher"] or "none", str(len(row["seeds"])), *cells])
    return table(heads, body)
