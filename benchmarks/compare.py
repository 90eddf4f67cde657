"""The regression guard: which rows of two result files moved beyond their noise."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.noise import KEY, key
from faces.cli import run_cli
from faces.errors import UserError

Row = dict[str, Any]
_RATE = ("faces_per_second", "iqr")


def compare(old: list[Row], new: list[Row]) -> list[Row]:
    """A row for each that is in either: `change` (new / old - 1; None where it is in one alone) and `verdict`: faster,
    slower, `within noise` (the medians differ by no more than the two interquartile ranges' sum), new or gone."""
    before, after = _indexed(old), _indexed(new)
    found = []
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name), after.get(name)
        row: Row = {"name": _name(one or other), "old": None, "new": None, "noise": None, "change": None}
        row |= {"old": one["faces_per_second"]} if one else {}
        row |= {"new": other["faces_per_second"]} if other else {}
        if one is None or other is None:
            found.append(row | {"verdict": "gone" if other is None else "new"})
            continue
        noise = _iqr(one) + _iqr(other)
        moved = other["faces_per_second"] - one["faces_per_second"]
        verdict = "within noise" if abs(moved) <= noise else "faster" if moved > 0 else "slower"
        found.append(row | {"noise": noise, "change": moved / one["faces_per_second"], "verdict": verdict})
    return found


def _iqr(row: Row) -> float:
    iqr = row["iqr"] or 0.0
    return float(iqr[-1] - iqr[0]) if isinstance(iqr, list) else float(iqr)


def _indexed(rows: list[Row]) -> dict[tuple[Any, ...], Row]:
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if found.setdefault(key(row), row) is not row:
            raise UserError(f"two rows are called {_name(row)}: rename one of the two files and measure again")
    return found


def _name(row: Row | None) -> str:
    assert row is not None, "a name is that of a row in one of the two files"
    words = dict(zip(KEY, key(row), strict=True))
    inside = "" if words["preprocessing"] is False else f", with {words['preprocessing']}"
    return (
        f"{words['artifact']} {words['runtime']} {words['precision']}, {words['device']}, {words['threads']} "
        f"thread(s), "
        f"batch {words['batch']}{inside}"
    )


def read_rows(path: Path) -> list[Row]:
    """The `throughput` of a result file (results.json of a run, too); UserError where it has none."""
    try:
        found = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise UserError(f"{path} is not JSON ({problem}): give what --json wrote") from None
    rows = found.get("throughput") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise UserError(
            f"{path} holds no throughput rows: give what benchmarks throughput --json wrote (of models, not of "
            "training), or a run's results.json"
        )
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not {*KEY, *_RATE} <= set(row):
        return False
    iqr = row["iqr"] if isinstance(row["iqr"], list) else [row["iqr"] or 0]
    return (
        all(isinstance(row[name], str | int | None) for name in KEY)
        and bool(str(row["runtime"]).split())
        and all(isinstance(one, int | float) and math.isfinite(one) for one in [row["faces_per_second"], *iqr])
        and row["faces_per_second"] > 0
        and len(iqr) in (1, 2)
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--all", "every", is_flag=True, help="Show the rows within noise, too.")
@run_cli
def main(old: Path, new: Path, every: bool) -> None:
    """Which rows of NEW moved beyond their noise since OLD. Exits with 1 where one became slower."""
    rows = compare(read_rows(old), read_rows(new))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
        if row["verdict"] != "within noise" or every:
            change = "" if row["change"] is None else f" {row['change']:+.1%}: {row['old']:,.0f} to {row['new']:,.0f}"
            noise = "" if row["noise"] is None else f" faces/s, noise {row['noise']:,.0f}"
            click.echo(f"{row['verdict']}{change}{noise}  {row['name']}")
    click.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no rows in either file")
    if counts.get("slower"):
        sys.exit(1)


if __name__ == "__main__":
    main()
