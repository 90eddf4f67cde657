"""Figures beside the teachers' tables: ROC across resolutions, and similarities of genuine and impostor pairs."""

from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from benchmarks.teacher_rows import Row, Table
from benchmarks.teacher_runs import Bench
from faces.align import crop
from faces.degrade import reduce
from faces.files import whole
from faces.parts import roc_of
from faces.quality import create_quality

_ROC = {"octuplet": ("none", "octuplet")}
_SIMILARITY = {"qgface": ("baseline", "E: qgface")}
_GRADIENTS = {"petalface": ("full", "petalface")}
_QUALITY = {"petalface": ("petalface",)}
_PEOPLE, _PROBE_PX = 50, 16
_LEVELS = ("full", "cross@28", "cross@14", "cross@7")


def draw(bench: Bench, name: str, table: Table, out: Path) -> None:
    """The figures of a table, where the scores of seed 0 are kept here; SVG files in `out`."""
    there = {row.name: row for row in table.rows if bench.scores(row, 0)}
    for kind, wanted in (
        (_roc, _ROC.get(name)),
        (_similarity, _SIMILARITY.get(name)),
        (_gradients, _GRADIENTS.get(name)),
        (_quality, _QUALITY.get(name)),
    ):
        if wanted and all(one in there for one in wanted):
            kind(bench, [there[one] for one in wanted], out / f"{name}-{kind.__name__[1:]}.svg")


def _roc(bench: Bench, rows: list[Row], path: Path) -> None:
    """Octuplet paper, Figure 2: dashed before, solid after; a dot at the equal error rate."""
    figure, axes = _panels(len(bench.parts), 1)
    for place, part in zip(axes[0], bench.parts, strict=True):
        for row, dashes in zip(rows, ("--", "-"), strict=True):
            scores = bench.scores(row, 0) or {}
            for i, level in enumerate(_LEVELS):
                roc = roc_of(scores[f"{part.name}/{level}"], part.pairs)
                fmr, tmr = roc.curve()
                place.plot(fmr, tmr, dashes, color=f"C{i}", linewidth=1.3,
                           label=f"{level}, {row.name} (EER {100 * roc.eer():.1f}%)")  # fmt: skip
                place.plot(roc.eer(), 1 - roc.eer(), ".", color=f"C{i}")
        place.set(xscale="log", xlabel="false match rate", ylabel="true match rate", title=part.name, ylim=(0, 1.01))
        place.legend(fontsize=6.5, frameon=False, loc="lower right")
    _save(figure, path)


def _similarity(bench: Bench, rows: list[Row], path: Path) -> None:
    """QGFace, Figure 5: the scores of genuine and impostor pairs; the gap of their means in each title."""
    levels = ("full", "cross@14", "cross@7")
    figure, axes = _panels(len(levels), len(rows))
    part = bench.parts[-1]
    for line, row in zip(axes, rows, strict=True):
        scores = bench.scores(row, 0) or {}
        for place, level in zip(line, levels, strict=True):
            values = scores[f"{part.name}/{level}"]
            for same, word in ((True, "genuine"), (False, "impostor")):
                place.hist(values[part.pairs.same == same], 60, alpha=0.6, label=word, density=True)
            gap = values[part.pairs.same].mean() - values[~part.pairs.same].mean()
            place.set(title=f"{row.name}, {level}: gap {gap:.2f}", xlabel="similarity")
            place.legend(fontsize=7, frameon=False)
    _save(figure, path)


def _gradients(bench: Bench, rows: list[Row], path: Path) -> None:
    """PETALface, Figure 4: the values of the first step's gradient; each panel has an axis of its own."""
    told_of = [(bench.read(row, 0) or {}).get("first_gradient") for row in rows]
    if not all(told_of):
        return
    figure, axes = _panels(len(rows), 1)
    for place, row, told in zip(axes[0], rows, told_of, strict=True):
        assert told is not None
        edge, counts = told["edge"], told["counts"]
        edges = np.linspace(-edge, edge, len(counts) + 1)
        place.stairs(counts, edges, fill=True)
        place.set(yscale="log", xlabel="gradient", ylabel="parameters",
                  title=f"{row.name}: norm {told['norm']:.2g}, {told['values']:,} values")  # fmt: skip
    _save(figure, path)


def _quality(bench: Bench, rows: list[Row], path: Path) -> None:
    """PETALface, Figure 2 (c): mean quality of each person's gallery and probe faces, here full size and 16 px."""
    file = next((bench.folder / bench.name(rows[0], 0)).glob("quality-*.safetensors"), None)
    if file is None:
        return
    score, faces = create_quality(file), bench.parts[-1].faces
    known = [np.flatnonzero(faces.identities == person)[:4] for person in range(min(_PEOPLE, len(faces.names)))]
    chosen = faces.subset(np.concatenate(known))
    crops = crop(chosen.images, chosen.landmarks, "arcface", int(score.side))
    figure, axes = _panels(1, 1)
    owner = np.repeat(np.arange(len(known)), [len(one) for one in known])
    for px, word in ((None, "gallery, full size"), (_PROBE_PX, f"probes, {_PROBE_PX} px")):
        quality = score.of(reduce(crops, px, crops.shape[1])).numpy()
        axes[0, 0].plot(np.bincount(owner, quality) / np.bincount(owner), ".-", linewidth=0.8, label=word)
    axes[0, 0].set(xlabel="person", ylabel="mean quality", ylim=(0, 1), title=f"{score.name}, {bench.parts[-1].name}")
    axes[0, 0].legend(fontsize=8, frameon=False)
    _save(figure, path)


def _panels(columns: int, lines: int) -> tuple[Figure, np.ndarray]:
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(4.6 * columns, 3.4 * lines), layout="constrained")
        return figure, figure.subplots(lines, columns, squeeze=False)


def _save(figure: Figure, path: Path) -> None:
    with matplotlib.style.context(["default", {"svg.hashsalt": "bridgeface"}]), whole(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
