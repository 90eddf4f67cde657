"""The teachers' tables as JSON and Markdown: accuracy by resolution with intervals, paired with a baseline row."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.output import cell, gap_cell, table
from benchmarks.teacher_rows import Row, Table
from benchmarks.teacher_runs import Bench, right_pairs
from faces.parts import Part
from teachers.evaluate import CROSS_PX, protocol_name

SEEING = 0.5
CROSS = [protocol_name(px) for px in CROSS_PX]


def summarise(bench: Bench, table: Table) -> dict[str, Any]:
    """Every row of the table: run or not, and by part its accuracies, mean and difference from the baseline."""
    right = {row.name: _correct(bench, row) for row in table.rows}
    rows = [_entry(bench, row, right, table.baseline) for row in table.rows]
    return {"title": table.title, "about": table.about, "baseline": table.baseline, "rows": rows}


def _correct(bench: Bench, row: Row) -> dict[str, NDArray[np.float64]]:
    """Share of the seeds that get each pair right, (P,), by `part/protocol`; empty where no seed was run."""
    runs = [found for seed in range(row.seeds) if (found := bench.read(row, seed))]
    return {
        f"{part.name}/{name}": np.mean(
            [right_pairs(one["measured"][f"{part.name}/{name}"], len(part.pairs.same)) for one in runs], axis=0
        )
        for part in bench.parts
        for name in _protocols(runs, part)
    }


def _protocols(runs: list[dict[str, Any]], part: Part) -> list[str]:
    measured = runs[0]["measured"] if runs else ()
    return [name.partition("/")[2] for name in measured if name.startswith(part.name + "/")]


def _entry(
    bench: Bench, row: Row, right: dict[str, dict[str, NDArray[np.float64]]], baseline: str | None
) -> dict[str, Any]:
    runs = [found for seed in range(row.seeds) if (found := bench.read(row, seed))]
    entry: dict[str, Any] = {"row": row.name, "method": row.method, "seeds_run": len(runs), "seeds_asked": row.seeds}
    if not runs:
        return entry | {"settings": bench.settings(row)}
    entry |= {
        key: runs[0][key] for key in ("settings", "metric", "trained_share", "alpha", "precision") if key in runs[0]
    }
    entry["cpu_seconds"] = [one["cpu_seconds"] for one in runs]
    # Rows from before name neither: they ran on a CPU, and whether they were resumed is not known.
    entry["device"] = [one.get("device", "cpu") for one in runs]
    entry["resumed"] = [one.get("resumed") for one in runs]
    if "norm_resolution_spearman" in runs[0]:
        entry["norm_resolution_spearman"] = float(np.mean([one["norm_resolution_spearman"] for one in runs]))
    entry["parts"] = {}
    for part in bench.parts:
        mine = {name.partition("/")[2]: v for name, v in right[row.name].items() if name.startswith(part.name + "/")}
        told = {name: _accuracy(values, part) for name, values in mine.items()}
        for name, one in told.items():
            one["eer"] = float(np.mean([run["measured"][f"{part.name}/{name}"]["eer"] for run in runs]))
        told["mean"] = _accuracy(np.mean([mine[name] for name in CROSS], axis=0), part)
        told["mean"]["by_seed"] = [
            float(np.mean([run["measured"][f"{part.name}/{name}"]["accuracy"] for name in CROSS])) for run in runs
        ]
        other = right.get(baseline or "", {})
        if other and row.name != baseline:
            told["against_baseline"] = _against(mine, other, part)
        entry["parts"][part.name] = told
    return entry


def _accuracy(values: NDArray[np.float64], part: Part) -> dict[str, Any]:
    found = part.interval(values)
    return {"accuracy": found["points"], "ci95": found["ci95"]}


def _against(
    mine: dict[str, NDArray[np.float64]], other: dict[str, NDArray[np.float64]], part: Part
) -> dict[str, dict[str, Any]]:
    """Paired differences, percentage points: at full size and of the mean over resolutions."""
    return {
        name: part.interval(np.mean([mine[one] - other[f"{part.name}/{one}"] for one in names], axis=0))
        for name, names in (("full", ["full"]), ("mean", CROSS))
    }


def markdown(summary: dict[str, Any], parts: list[str]) -> str:
    """The table as Markdown, one block a validation part."""
    lines = [f"### {summary['title']}", "", f"{summary['about']}.", ""]
    for part in parts:
        heads = ["row", "seeds", *CROSS, "mean", "mean, points from baseline", "full, points from baseline"]
        body = [_cells(entry, part, summary["baseline"]) for entry in summary["rows"]]
        lines += [f"`{part}`, accuracy in %:", "", *table(heads, body), ""]
    same = [entry for entry in summary["rows"] if any("same" in name for name in _told(entry, parts[0]))]
    if same:
        names = ["full"] + [name for name in _told(same[0], parts[0]) if name.startswith("same")]
        body = [
            [entry["row"], part, *(f"{_told(entry, part)[name]['accuracy']:.1f}" for name in names)]
            for entry in same
            for part in parts
        ]
        lines += ["Both faces at the same resolution:", "", *table(["row", "part", *names], body), ""]
    lines += _gate([entry for entry in summary["rows"] if "norm_resolution_spearman" in entry])
    return "\n".join(lines)


def _gate(entries: list[dict[str, Any]]) -> list[str]:
    """Whether the feature's norm, which QGFace takes for quality, follows the resolution."""
    if not entries:
        return []
    about = (
        f"Rank correlation (Spearman) of the feature's norm with the face's resolution; below {SEEING} QGFace's gate "
        "is blind, below 0 it turns good faces away and lets bad ones in:"
    )
    body = []
    for entry in entries:
        value = entry["norm_resolution_spearman"]
        says = "sees" if value >= SEEING else "is blind" if value >= 0 else "is the wrong way round"
        body.append([entry["row"], f"{value:+.2f}", says])
    return [about, "", *table(["row", "correlation", "the gate"], body), ""]


def _told(entry: dict[str, Any], part: str) -> dict[str, Any]:
    return entry.get("parts", {}).get(part, {})


def _cells(entry: dict[str, Any], part: str, baseline: str | None) -> list[str]:
    told = _told(entry, part)
    if not told:
        return [entry["row"], "0", *["not run"] * (len(CROSS) + 3)]
    cells = [entry["row"], str(entry["seeds_run"]), *(f"{told[name]['accuracy']:.1f}" for name in CROSS)]
    mean = told["mean"]
    cells.append(cell({"points": mean["accuracy"], "ci95": mean["ci95"]}))
    if entry["row"] == baseline:
        return [*cells, "baseline", "baseline"]
    return [*cells, *(gap_cell(told.get("against_baseline", {}).get(name)) for name in ("mean", "full"))]
