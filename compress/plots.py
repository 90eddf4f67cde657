"""The report's figures: matplotlib to inline SVG that takes its colours and font from the page.

Every figure is drawn in stand-in colours, which are then replaced by CSS variables, so that one SVG serves
the light and the dark page. The same input gives the same bytes.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Stand-in colour -> CSS variable of the page.
INK, MUTED, LINE, STUDENT, TEACHER, REFERENCE = (f"#0{i}0{i}0{i}" for i in range(1, 7))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    STUDENT: "--student",
    TEACHER: "--teacher",
    REFERENCE: "--reference",
}
# Inches at 72 dpi: about as wide as a phone's card, so that text keeps its size there.
_WIDTH, _HEIGHT = 4.7, 3.2
# "default" first: the user's own matplotlibrc changes nothing here.
_STYLE: list[Any] = [
    "default",
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "bridgeface",
        # Names come from users: "$" in one is a dollar sign, never a formula.
        "text.parse_math": False,
        "font.size": 10.5,
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    },
]
_LOOKS = {STUDENT: ("o", "-"), TEACHER: ("s", "--"), REFERENCE: ("^", ":")}


@dataclass(frozen=True)
class Line:
    """One series: points in the order of x; `low` and `high` bound y where an interval is known."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())


def _plain(text: str, longest: int = 40) -> str:
    """One printable line; matplotlib hides a label that starts with an underscore, so it gets a space."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if len(text) > longest:
        text = f"{text[: longest // 2 - 1]}…{text[-longest // 2 :]}"
    return f" {text}" if text.startswith("_") else text


def _axes(height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(length=0)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an inline <svg>: no namespace, no metadata, ids prefixed by `name`, page colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Its <style> would hold for the whole page, which has the same rule for figures.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sid="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None
    label = _attribute(description)
    return re.sub(r"<svg[^>]*>", lambda _: f'<svg {box[0]} role="img" aria-label="{label}">', svg, count=1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _legend(axes: Axes) -> None:
    labels = axes.get_legend_handles_labels()[1]
    # Beside each other only where they fit a phone's card.
    columns = len(labels) if sum(map(len, labels)) <= 36 and len(labels) < 3 else 1
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, handlelength=2.2, borderpad=0.2)


def resolution(name: str, lines: Sequence[Line], floor: float, description: str) -> str:
    """Accuracy (percent, with 95% bars) against resolution; x in px, infinity = full size."""
    with matplotlib.style.context(_STYLE):
        figure, axes = _axes()
        places = sorted({x for line in lines for x in line.x})
        for i, line in enumerate(lines):
            marker, dashes = _LOOKS[line.colour]
            # Bars that share a resolution stand beside each other, not on each other.
            at = [places.index(x) + 0.09 * (i - (len(lines) - 1) / 2) for x in line.x]
            below = [y - low for y, low in zip(line.y, line.low, strict=True)]
            above = [high - y for y, high in zip(line.y, line.high, strict=True)]
            axes.errorbar(
                at, line.y, yerr=[below, above], label=_plain(line.label), color=line.colour, marker=marker,
                markersize=5, linestyle=dashes, linewidth=1.8, elinewidth=1.2, capsize=2.5,
            )  # fmt: skip
        labels = ["full" if x == float("inf") else f"{x:g}" for x in places]
        axes.set_xticks(range(len(places)), labels)
        axes.set_xlim(-0.35, len(places) - 0.65)
        axes.set_ylim(floor, 100.6)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("face width, px")
        axes.set_ylabel("accuracy, %")
        _legend(axes)
        return _svg(figure, name, description)


def roc(name: str, lines: Sequence[Line], description: str) -> str:
    """True match rate against false match rate, both percent, the latter on a log axis (zeros left out)."""
    with matplotlib.style.context(_STYLE):
        figure, axes = _axes()
        for line in lines:
            kept = [(100 * x, 100 * y) for x, y in zip(line.x, line.y, strict=True) if x > 0]
            axes.plot(
                [x for x, _ in kept], [y for _, y in kept], label=_plain(line.label), color=line.colour,
                linestyle=_LOOKS[line.colour][1], linewidth=1.8, drawstyle="steps-post",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        axes.set_ylim(0, 101)
        axes.set_xlabel("false match rate, % (log scale)")
        axes.set_ylabel("true match rate, %")
        _legend(axes)
        return _svg(figure, name, description)


def bars(name: str, groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], description: str) -> str:
    """Horizontal bars with their values: groups of (title, [(label, faces/s), ...])."""
    with matplotlib.style.context(_STYLE):
        slots = sum(len(group) + 1.15 for _, group in groups)
        figure, axes = _axes(0.35 + 0.29 * slots)
        most = max(value for _, group in groups for _, value in group)
        place, ticks, labels = 0.0, [], []
        for title, group in groups:
            axes.text(-0.19, place, _plain(title, 52), va="center", color=INK, transform=axes.get_yaxis_transform())
            for label, value in group:
                place += 1
                axes.barh(place, value, height=0.68, color=STUDENT)
                axes.text(value + most * 0.015, place, f"{value:,.0f}", va="center", color=INK)
                ticks.append(place)
                labels.append(label)
            place += 1.15
        axes.set_yticks(ticks, labels)
        axes.set_ylim(place - 0.5, -0.7)
        axes.set_xlim(0, most * 1.18)
        axes.xaxis.set_visible(False)
        axes.grid(False)
        axes.spines[["bottom", "left"]].set_visible(False)
        return _svg(figure, name, description)


def curve(name: str, steps: Sequence[float], loss: Sequence[float], description: str) -> str:
    """The loss of the distillation against its step."""
    with matplotlib.style.context(_STYLE):
        figure, axes = _axes(2.4)
        axes.plot(steps, loss, color=STUDENT, linewidth=1.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        return _svg(figure, name, description)


def series(name: str, lines: Sequence[Line], unit: str, description: str) -> str:
    """Some quantities against the step of a training; each line's last value stands behind its name."""
    with matplotlib.style.context(_STYLE):
        figure, axes = _axes(2.6)
        for i, line in enumerate(lines):
            marker, dashes = _LOOKS[line.colour]
            axes.plot(line.x, line.y, label=_plain(f"{line.label} ({line.y[-1]:.3g})"), color=line.colour,
                      linestyle=dashes, linewidth=1.5 if i < 3 else 0.9, marker=marker if len(line.x) < 8 else "",
                      markersize=4)  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        if len(lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, handlelength=2.2, borderpad=0.2)
        return _svg(figure, name, description)
