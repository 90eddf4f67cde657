"""Which figures the report has: chosen from results.json and curves.csv, drawn by `compress/plots.py`."""

import contextlib
import csv
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from compress import plots
from compress.results import Accuracy, Results, Throughput

# Groups of bars and data sets that are drawn; the rest is in the tables.
_BAR_GROUPS, _DATASETS = 6, 4


def _lines(rows: Sequence[Accuracy], run: Results) -> list[tuple[str, str, list[Accuracy]]]:
    """Label, colour and rows of teacher, student and every model of the reference rows."""
    lines = [
        (f"student, {run.student.name}", plots.STUDENT, [row for row in rows if row.model == "student"]),
        (f"teacher, {run.teacher.name}", plots.TEACHER, [row for row in rows if row.model == "teacher"]),
    ]
    wheres = {(row.data, row.split) for row in rows}
    beside = [row for row in run.reference or [] if (row.data, row.split) in wheres]
    for model in dict.fromkeys(row.model for row in beside):
        lines.append((model, plots.REFERENCE, [row for row in beside if row.model == model]))
    return [line for line in lines if line[2]]


def accuracy_figures(run: Results) -> list[dict[str, Any]]:
    """Per data set and split: accuracy against resolution, same@p and cross@p, and a ROC, where measured."""
    wheres = list(dict.fromkeys((row.data, row.split) for row in run.accuracy))
    made = []
    for i, where in enumerate(wheres[:_DATASETS]):
        lines = _lines([row for row in run.accuracy if (row.data, row.split) == where], run)
        if not lines:
            continue
        lows = [row.ci95[0] for _, _, rows in lines for row in rows]
        floor = min(95.0, 5 * ((min(lows) - 1) // 5))
        figure: dict[str, Any] = {"data": where[0], "split": where[1]}
        for kind in ("same", "cross"):
            drawn = [line for line in lines if any(row.kind == kind for row in line[2])]
            if drawn:
                points = [_resolution_line(*line, kind) for line in drawn]
                figure[kind] = Markup(
                    plots.resolution(f"{kind}{i}", points, floor,
                                     f"Accuracy against resolution on {where[0]}, {kind}@p; "
                                     "every point is in the table of all accuracy rows.")
                )  # fmt: skip
        figure["roc_protocol"] = _roc_protocol(lines, run.headline)
        if figure["roc_protocol"]:
            curves = [
                plots.Line(label, colour, row.roc.fmr, row.roc.tmr)
                for label, colour, rows in lines
                for row in rows
                if row.protocol == figure["roc_protocol"] and row.roc and any(row.roc.fmr)
            ]
            figure["roc"] = Markup(
                plots.roc(f"roc{i}", curves, f"ROC at {figure['roc_protocol']} on {where[0]}: true match "
                          "rate against false match rate; chosen points are in the table as TAR.")
            )  # fmt: skip
        made.append(figure)
    return made


def _resolution_line(label: str, colour: str, rows: list[Accuracy], kind: str) -> plots.Line:
    at = {row.px or float("inf"): row for row in rows if row.kind in (kind, "full")}
    widths = sorted(at)
    return plots.Line(
        label, colour, widths, [at[x].accuracy for x in widths],
        [at[x].ci95[0] for x in widths], [at[x].ci95[1] for x in widths],
    )  # fmt: skip


def _roc_protocol(lines: list[tuple[str, str, list[Accuracy]]], headline: str) -> str | None:
    """The protocol whose ROC is drawn: the headline's where a row has its curve, else the first that has one."""
    having = [row.protocol for _, _, rows in lines for row in rows if row.roc and any(row.roc.fmr)]
    return headline if headline in having else next(iter(having), None)


def speed_bars(rows: Sequence[Throughput]) -> dict[str, Any] | None:
    """Faces a second by artifact and batch, and how many groups were left out; None without a row."""
    groups: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
        title = f"{Path(row.artifact).name}, {row.runtime}, {row.device}, {threads}"
        groups.setdefault(title, []).append((f"batch {row.batch}", row.faces_per_second))
    if not groups:
        return None
    drawn = list(groups.items())[:_BAR_GROUPS]
    svg = plots.bars("speed", drawn, "Faces a second by artifact and batch, as in the table.")
    return {"svg": Markup(svg), "left_out": len(groups) - len(drawn)}


def loss_curve(path: Path) -> dict[str, Any]:
    """The loss curve; rows that are not whole numbers (a killed run's last line) are counted and left out."""
    if not path.is_file():
        return {"missing": "No loss curve was stored."}
    points, torn = [], 0
    for row in _read(path):
        try:
            points.append((float(row["step"]), float(row["loss"])))
        except (KeyError, TypeError, ValueError):
            torn += 1
    # No axis spans the largest of numbers.
    points = [point for point in points if np.isfinite(point).all() and max(map(abs, point)) < 1e30]
    if len(points) < 2:
        return {"missing": "The stored loss curve has fewer than two readable points."}
    steps, loss = zip(*points, strict=True)
    return {"svg": Markup(plots.curve("loss", steps, loss, "Loss of the distillation by step")), "torn": torn}


def _read(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file up to the first that no reader takes."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file, contextlib.suppress(csv.Error):
        yield from csv.DictReader(file)


def finetune_curves(path: Path) -> list[dict[str, Any]]:
    """The teacher's fine-tuning: loss, rate, accuracy by resolution, alpha; none where it was not fine-tuned."""
    if not path.is_file():
        return []
    rows = [{key: _number(value) for key, value in row.items() if key} for row in _read(path)]
    made: list[dict[str, Any]] = []
    for title, about, wanted, unit in _FINETUNE:
        lines = _columns(rows, wanted)
        if lines:
            svg = plots.series(f"finetune-{len(made)}", lines, unit, f"{title} by step of the fine-tuning")
            made.append({"title": title, "about": about, "svg": Markup(svg)})
    return made


# Title, a few words, which columns of finetune.csv, and the unit of the axis.
_FINETUNE = (
    ("Loss", "of the fine-tuning", ("loss",), "loss"),
    ("Learning rate", "as it was used", ("lr",), "rate"),
    ("Accuracy by resolution", "test people; the second face at the width named", ("full", "cross@*"), "accuracy, %"),
    ("Alpha", "mean over the batch", ("alpha",), "alpha"),
)
_COLOURS = (plots.STUDENT, plots.TEACHER, plots.REFERENCE)


def _columns(rows: list[dict[str, float | None]], wanted: Sequence[str]) -> list[plots.Line]:
    names = [name for name in dict.fromkeys(key for row in rows for key in row) for one in wanted if fnmatch(name, one)]
    lines: list[plots.Line] = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get("step") is not None and row.get(name) is not None]
        if len(points) > 1:
            steps, values = zip(*points, strict=True)
            lines.append(plots.Line(name, _COLOURS[len(lines) % len(_COLOURS)], steps, values))
    return lines


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None
