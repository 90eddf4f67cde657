"""What a 95% interval of an accuracy is worth: `python -m benchmarks coverage --help`."""

from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.output import table
from faces.cli import Output, run_cli
from faces.files import write_json
from faces.verification import Pairs, bootstrap_interval, correct_by_fold, make_pairs, similarity

PEOPLE = ((10, 10), (30, 10), (300, 8))
"""People and faces of each: as many as the ORL faces' test set has, a few more, and as `val-b` about."""
_WIDTH, _SPREAD, _APART = 16, 0.8, 0.35


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sets", default=300, show_default=True, type=click.IntRange(20), help="Data sets drawn for a row.")
@click.option("--json", "json_file", type=Output(), help="Write everything here.")
@run_cli
def main(sets: int, json_file: Any) -> None:
    """How often the intervals of this package hold the truth, on made people.

    A person is a point, a face of theirs a point around it (more or less so by person); another model sees the same
    faces with noise of its own. The truth is the mean over all sets that are drawn. `accuracy`: of one model; `paired`:
    the difference of the other's. An interval of 95% should hold it in 95 of 100 sets; where people are few, it does
    in fewer, as impostor pairs are drawn one by one though the same people stand in many of them, and in a paired
    difference the two thresholds move as well.
    """
    rows = []
    for people, each in PEOPLE:
        bar = track(range(sets), f"{people} people", console=Console(stderr=True), transient=True)
        drawn = [_drawn(people, each, number) for number in bar]
        rows.append({"people": people, "faces_of_each": each, "sets": sets, **_held(drawn)})
    heads = ("people", "faces of each", "accuracy, %", "intervals that hold it, %", "paired difference, points",
             "intervals that hold it, %")  # fmt: skip
    cells = [
        (str(row["people"]), str(row["faces_of_each"]), f"{row['accuracy']:.1f}", f"{row['accuracy_held']:.0f}",
         f"{row['paired']:+.1f}", f"{row['paired_held']:.0f}")
        for row in rows
    ]  # fmt: skip
    click.echo("\n".join(table(heads, cells)))
    if json_file:
        write_json(json_file, {"coverage": rows})


def _drawn(people: int, each: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Value, lower and upper end of the accuracy and of the paired difference on one set, in percent."""
    rng = np.random.default_rng([seed, people])
    identities = np.arange(people).repeat(each)
    spread = _SPREAD * np.exp(0.2 * rng.standard_normal(people))[identities, None]
    faces = rng.standard_normal((people, _WIDTH))[identities] + spread * rng.standard_normal((len(identities), _WIDTH))
    pairs = make_pairs(identities, 0)
    one, other = (_right(x, pairs) for x in (faces, faces + _APART * rng.standard_normal(faces.shape)))
    found = {}
    for name, values in (("accuracy", one), ("paired", other - one)):
        low, high = bootstrap_interval(values, pairs, identities)
        found[name] = (100 * float(values.mean()), 100 * low, 100 * high)
    return found


def _right(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    return correct_by_fold(similarity(embeddings[pairs.a], embeddings[pairs.b], "cosine"), pairs).astype(float)


def _held(drawn: list[dict[str, tuple[float, float, float]]]) -> dict[str, float]:
    found = {}
    for name in ("accuracy", "paired"):
        value, low, high = np.array([one[name] for one in drawn]).T
        truth = value.mean()
        found[name] = float(truth)
        found[f"{name}_held"] = 100 * float(((low <= truth) & (truth <= high)).mean())
    return found
