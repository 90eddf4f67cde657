"""The benchmarks' figures: speed by batch, and accuracy against speed. SVG or PNG, by the file's name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.paper import FACES_PER_SECOND
from benchmarks.speed_table import network
from faces.files import whole

Row = dict[str, Any]


def speed(rows: Sequence[Row], path: Path) -> None:
    """Faces/s by batch, one line a network, runtime, precision and thread count, one panel an input size;
    quartiles as bars, the paper's figure as a dotted line."""
    plain = [row for row in rows if row["preprocessing"] is False]
    sizes = sorted({row["input_px"] for row in plain})
    figure, axes = plt.subplots(1, len(sizes), figsize=(5.2 * len(sizes), 4.2), squeeze=False)
    for axis, px in zip(axes[0], sizes, strict=True):
        lines: dict[str, list[Row]] = {}
        for row in (row for row in plain if row["input_px"] == px):
            name = f"{network(row)}, {row['runtime'].split()[0]} {row['precision']}, {row['threads']} thread(s)"
            lines.setdefault(name, []).append(row)
        for name, line in lines.items():
            ordered = sorted(line, key=lambda row: row["batch"])
            axis.errorbar(
                [row["batch"] for row in ordered],
                [row["faces_per_second"] for row in ordered],
                yerr=[row["iqr"] / 2 for row in ordered],
                marker="o", markersize=3, linewidth=1, label=name,
            )  # fmt: skip
        if (paper := FACES_PER_SECOND["one 2.6 GHz core"].get(px)) is not None:
            axis.axhline(paper, linestyle=":", color="black", linewidth=1, label=f"the paper's CPU: {paper}")
        axis.set(xscale="log", yscale="log", xlabel="faces a call", ylabel="faces/s", title=f"{px} px")
        axis.legend(fontsize=6)
    _save(figure, path)


def pareto(rows: Sequence[Row], path: Path, x: str, y: str, name: str, title: str, y_label: str) -> None:
    """Points of `rows` (keys x, y, name); those that no other beats in both are joined by a line."""
    figure, axis = plt.subplots(figsize=(6.4, 4.6))
    front = frontier(rows, x, y)
    axis.plot([row[x] for row in front], [row[y] for row in front], linewidth=1, color="0.6")
    axis.scatter([row[x] for row in rows], [row[y] for row in rows], s=20)
    for row in rows:
        axis.annotate(row[name], (row[x], row[y]), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axis.set(xscale="log", xlabel="faces/s, one thread", ylabel=y_label, title=title)
    _save(figure, path)


def frontier(rows: Sequence[Row], x: str, y: str) -> list[Row]:
    """Rows that no other row equals or beats in both x and y, by rising x."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda one: (-one[x], -one[y])):
        if not found or row[y] > found[-1][y]:
            found.append(row)
    return found[::-1]


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    with whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "svg", dpi=120)
    plt.close(figure)
