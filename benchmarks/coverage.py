"""What a 95% interval of an accuracy is worth: `python -m benchmarks coverage --help`."""

from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.output import table
from faces.cli import Output, run_cli
from faces.files import write_json
from faces.intervals import pair_interval, rank_interval, roc_intervals
from faces.verification import (
    Pairs,
    Roc,
    all_pairs,
    correct_by_fold,
    make_pairs,
    rank1,
    similarity,
)

PEOPLE = ((10, 10), (30, 10), (300, 8))
"""People and faces of each: as many as the ORL faces' test set has, a few more, and as `val-b` about."""
_WIDTH, _SPREAD, _APART = 16, 0.8, 0.35
_FAR = 0.01
_NAMES = {"accuracy": "accuracy, %", "paired": "paired difference, points", "tar": f"TAR at FAR {_FAR:.0%}, %",
          "eer": "EER, %", "rank1": "rank-1, %"}  # fmt: skip
_SIGN = {"paired": "+"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sets", default=300, show_default=True, type=click.IntRange(20), help="Data sets drawn for a row.")
@click.option("--json", "json_file", type=Output(), help="Write everything here.")
@run_cli
def main(sets: int, json_file: Any) -> None:
    """How often the intervals of this package hold the truth, on made people.

    A person is a point, a face of theirs a point around it (more or less so by person); another model sees the same
    faces with noise of its own. The truth is the mean over all sets that are drawn. `accuracy`: of one model; `paired`:
    the difference of the other's; `tar`: the true accept rate at a FAR of 1% of all pairs, `eer`, and `rank1`. An
    interval of 95% should hold it in 95 of 100 sets; where people are few, it does in fewer: the accuracy's thresholds
    are held, which in a paired difference are two, and so is rank-1's gallery.
    """
    rows = []
    for people, each in PEOPLE:
        bar = track(range(sets), f"{people} people", console=Console(stderr=True), transient=True)
        drawn = [_drawn(people, each, number) for number in bar]
        rows.append({"people": people, "faces_of_each": each, "sets": sets, **_held(drawn)})
    heads = ["people", "faces of each", *(head for name in _NAMES.values() for head in (name, "held, %"))]
    cells = [
        (str(row["people"]), str(row["faces_of_each"]),
         *(cell for name in _NAMES for cell in (f"{row[name]:{_SIGN.get(name, '')}.1f}", f"{row[f'{name}_held']:.0f}")))
        for row in rows
    ]  # fmt: skip
    click.echo("\n".join(table(heads, cells)))
    if json_file:
        write_json(json_file, {"coverage": rows})


def _drawn(people: int, each: int, seed: int) -> dict[str, tuple[float, ...]]:
    """Value, lower and upper end of each of `_NAMES` on one set, in percent."""
    rng = np.random.default_rng([seed, people])
    identities = np.arange(people).repeat(each)
    spread = _SPREAD * np.exp(0.2 * rng.standard_normal(people))[identities, None]
    faces = rng.standard_normal((people, _WIDTH))[identities] + spread * rng.standard_normal((len(identities), _WIDTH))
    pairs = make_pairs(identities, 0)
    one, other = (_right(x, pairs) for x in (faces, faces + _APART * rng.standard_normal(faces.shape)))
    found: dict[str, tuple[float, ...]] = {}
    for name, values in (("accuracy", one), ("paired", other - one)):
        low, high = pair_interval(values, pairs, identities)
        found[name] = (float(values.mean()), low, high)
    every = all_pairs(faces, faces, identities, "cosine")
    roc, drawn = Roc.of(every), roc_intervals(every, [_FAR])
    tar, ends = roc.tar_at(_FAR), drawn.tar[_FAR]
    right, whose = rank1(faces, faces, identities, "cosine")
    ranked = rank_interval(right, whose)
    # The fewest people of a row are enough for these figures.
    assert tar is not None
    assert ends is not None
    assert drawn.eer is not None
    assert ranked is not None
    found |= {"tar": (tar, *ends), "eer": (roc.eer(), *drawn.eer), "rank1": (float(right.mean()), *ranked)}
    return {name: tuple(100 * value for value in row) for name, row in found.items()}


def _right(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    return correct_by_fold(similarity(embeddings[pairs.a], embeddings[pairs.b], "cosine"), pairs).astype(float)


def _held(drawn: list[dict[str, tuple[float, ...]]]) -> dict[str, float]:
    found = {}
    for name in drawn[0]:
        value, low, high = np.array([one[name] for one in drawn]).T
        truth = value.mean()
        found[name] = float(truth)
        found[f"{name}_held"] = 100 * float(((low <= truth) & (truth <= high)).mean())
    return found
