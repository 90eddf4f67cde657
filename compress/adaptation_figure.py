"""The figure beside the table of the adaptation: bridge distillation, Figure 3, and the unseen people next to it."""

from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faces.files import whole


def draw(told: dict[str, Any], path: Path) -> None:
    """Horizontal bars with 95% intervals, a colour for each teacher, a panel for each measure; `told` is
    adaptation.json. Rows that were not run have no bar; without any there is no figure."""
    rows = [row for row in told["rows"] if row["seeds"]]
    panels = {f"closed-set, {name}": [(row, row["closed_set"].get(name)) for row in rows]
              for name in dict.fromkeys(name for row in rows for name in row["closed_set"])}  # fmt: skip
    for part in dict.fromkeys(part for row in rows for part in row["parts"]):
        for name in dict.fromkeys(name for row in rows for name in row["parts"][part] if name.startswith("same")):
            panels[f"{part}, {name}"] = [(row, row["parts"][part].get(name, {}).get("accuracy")) for row in rows]
    if not panels:
        return
    names = list(dict.fromkeys(row["row"] for row in rows))
    teachers = list(dict.fromkeys(row["teacher"] for row in rows))
    with matplotlib.style.context("default"):
        size = (2.2 + 2.5 * len(panels), 0.9 + 0.3 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for place, (title, shown) in zip(axes, panels.items(), strict=True):
            _bars(place, title, shown, names, teachers)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].invert_yaxis()
        # Not every panel has bars of every teacher.
        marks = {
            teacher: mark for place in axes for mark, teacher in zip(*place.get_legend_handles_labels(), strict=True)
        }
        figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=4, frameon=False)
    with matplotlib.style.context(["default", {"svg.hashsalt": "bridgeface"}]), whole(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _bars(
    place: Axes,
    title: str,
    shown: list[tuple[dict[str, Any], dict[str, Any] | None]],
    names: list[str],
    teachers: list[str | None],
) -> None:
    there = [(row, one) for row, one in shown if one is not None]
    height = 0.8 / len(teachers)
    for i, teacher in enumerate(teachers):
        mine = [(names.index(row["row"]), one) for row, one in there if row["teacher"] == teacher]
        if not mine:
            continue
        at = [line + (i - (len(teachers) - 1) / 2) * height for line, _ in mine]
        points = [one["points"] for _, one in mine]
        errors = [
            [one["points"] - one["ci95"][0] for _, one in mine],
            [one["ci95"][1] - one["points"] for _, one in mine],
        ]
        place.barh(at, points, height, xerr=errors, color=f"C{i}", label=teacher or "no teacher",
                   error_kw={"elinewidth": 0.9})  # fmt: skip
    low = min(one["ci95"][0] for _, one in there)
    high = max(one["ci95"][1] for _, one in there)
    place.set_xlim(max(0, low - 0.35 * (high - low) - 1), min(100, high + 1))
    place.set_title(title, fontsize=9)
    place.set_xlabel("%", fontsize=9)
    place.tick_params(labelsize=8.5)
