"""Error by number of training images a person: the curves beside the table of heads."""

from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from faces.files import whole


def draw(told: dict[str, Any], path: Path) -> None:
    """One curve a network with 95% intervals, top-1 and top-5 side by side; `told` is head.json. Without any row that
    was run there is no figure."""
    rows = [row for row in told["rows"] if row["seeds"]]
    if not rows:
        return
    images = sorted({row["images"] for row in rows})
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        for place, top in zip(figure.subplots(1, 2), ("top1", "top5"), strict=True):
            for row, weights in dict.fromkeys((one["row"], one["weights"]) for one in rows):
                line = [one for one in rows if (one["row"], one["weights"]) == (row, weights)]
                points = [one[top]["points"] for one in line]
                ends = [[abs(p - one[top]["ci95"][i]) for p, one in zip(points, line, strict=True)] for i in (0, 1)]
                place.errorbar([one["images"] for one in line], points, yerr=ends, marker="o", markersize=3,
                               linewidth=1.2, capsize=2, label=f"{weights}, {row}" if weights else row)  # fmt: skip
            place.set(xscale="log", xlabel="training images a person", ylabel=f"top-{top[-1]} error, %, closed-set",
                      ylim=(0, None))  # fmt: skip
            place.set_xticks(images, map(str, images))
            place.xaxis.set_minor_locator(NullLocator())
        figure.legend(*place.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    with matplotlib.style.context(["default", {"svg.hashsalt": "bridgeface"}]), whole(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
