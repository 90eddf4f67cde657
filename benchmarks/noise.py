"""Was the machine quiet enough? Every row is measured in two passes, which must agree within the spread they state."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
KEY = ("artifact", "runtime", "device", "threads", "batch", "precision", "input_px", "preprocessing")


def key(row: Row) -> tuple[Any, ...]:
    """What names a row, whenever and in whichever order it was measured. Versions of a runtime are no part of it."""
    return tuple(str(row[name]).split()[0] if name == "runtime" else row[name] for name in KEY)


def joined(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """The rows of two passes as one, in the order that both were measured in: the better pass's figures (noise only
    ever slows down), the wider `iqr` of the two, and `passes`: both medians and whether they lie within that `iqr` of
    each other."""
    found = []
    # Not by key: two files of one name would both get the last one's second pass.
    for row, other in zip(first, second, strict=True):
        better = max(row, other, key=lambda one: one["faces_per_second"])
        iqr = max(row["iqr"], other["iqr"])
        medians = [row["faces_per_second"], other["faces_per_second"]]
        passes = {"medians": medians, "agree": abs(medians[0] - medians[1]) <= iqr}
        found.append(better | {"iqr": iqr, "passes": passes})
    return found


def verdict(rows: Sequence[Row]) -> dict[str, Any]:
    """`quiet`: do the two passes of every row agree? With a sentence that says how many do not and by how much."""
    apart = [row for row in rows if not row["passes"]["agree"]]
    most = max((abs(a - b) / max(a, b) for a, b in (row["passes"]["medians"] for row in rows)), default=0.0)
    if not apart:
        text = f"both passes of all {len(rows)} rows agree within the interquartile range stated"
    else:
        text = (
            f"this machine was too noisy: in {len(apart)} of {len(rows)} rows the two passes differ by more than the "
            f"interquartile range stated, at most by {most:.0%}"
        )
    return {"quiet": not apart, "rows": len(rows), "apart": len(apart), "most_apart": most, "text": text}
