"""95% intervals, as though the people of a test set had been others: a person's pairs are not independent.

Of what fixed pairs say, in closed form (`pair_interval`); of what all pairs say (`roc_intervals`) and of rank-1
(`rank_interval`) by people drawn with replacement, and all their faces with them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from faces.verification import AllPairs, Pairs, Roc

Interval = tuple[float, float]
_ENDS = [0.025, 0.975]
_LEVELS = 200
FEWEST = 5
"""Of fewer people most draws are alike, and what they say varies far less than what other people would."""


@dataclass(frozen=True)
class RocIntervals:
    """Of `Roc.tar_at`, by FAR (None where impostors or people are too few for it), and of `Roc.eer`."""

    tar: dict[float, Interval | None]
    eer: Interval | None


def pair_interval(values: np.ndarray, pairs: Pairs, identities: np.ndarray) -> Interval:
    """Of the mean of values (P,) of fixed pairs: right or wrong, or a paired difference of two models.

    Two pairs that share a person vary together, the others do not: the dyadic-robust variance (Aronow, Samii and
    Assenova 2015, Cluster-robust variance estimation for dyadic data) of the genuine and the impostor rate, whose
    shares are held, with Student's t for the people of that one of the two that has fewer. The thresholds are held too.
    """
    values = values.astype(float)
    # In a list of fixed pairs a face may be unlabelled: it then stands for a person of its own.
    whose = [np.where(identities[side] >= 0, identities[side], -1 - side) for side in (pairs.a, pairs.b)]
    names, owners = np.unique(np.stack(whose), return_inverse=True)
    first, second = owners.reshape(2, -1)
    away, people, ends = np.zeros(len(values)), [], np.zeros(2)
    for kind in (pairs.same, ~pairs.same):
        if not kind.any():
            continue
        people.append(len(np.unique([first[kind], second[kind]])))
        # What is measured from its own mean varies too little, the more so the fewer there are.
        wider = np.sqrt(people[-1] / max(1, people[-1] - 1))
        away[kind] = wider * (values[kind] - values[kind].mean()) / len(values)
        ends += kind.mean() * np.array([values[kind].min(), values[kind].max()])
    if min(people) < 2:
        return float(ends[0]), float(ends[1])
    # Each pair counts once with each of its people; what a pair of people share was then counted twice.
    two = first != second
    of_each = np.bincount(first, away, len(names)) + np.bincount(second[two], away[two], len(names))
    both = np.minimum(first, second)[two] * len(names) + np.maximum(first, second)[two]
    of_two = np.bincount(np.unique(both, return_inverse=True)[1], away[two])
    # By chance it can be less than if all pairs of different people were independent.
    least = (np.bincount(first[~two], away[~two], len(names)) ** 2).sum() + (away[two] ** 2).sum()
    half = stdtrit(min(people) - 1, 0.975) * np.sqrt(max((of_each**2).sum() - (of_two**2).sum(), least))
    # No mean of such values lies beyond these ends.
    return float(max(values.mean() - half, ends[0])), float(min(values.mean() + half, ends[1]))


def roc_intervals(pairs: AllPairs, fars: Sequence[float], draws: int = 400, seed: int = 0) -> RocIntervals:
    """A pair of one person counts as often as the person was drawn, a pair of two people as often as one was times as
    often as the other was (the vertex bootstrap of Fogliato, Patil and Perona 2024, Confidence intervals for error
    rates in 1:1 matching tasks). Each draw sets its own threshold. Shares in [0, 1]; an interval contains the figure
    itself.

    A draw's false match rate is exact at `_LEVELS` thresholds and on a straight line between them. None throughout
    where fewer than `FEWEST` people have genuine pairs."""
    genuine, owner = _sorted(pairs.scores[pairs.same], pairs.first[pairs.same])
    impostor, one, other = _sorted(pairs.scores[~pairs.same], pairs.first[~pairs.same], pairs.second[~pairs.same])
    people = int(max(pairs.first.max(), pairs.second.max())) + 1
    if len(np.unique(owner)) < FEWEST:
        return RocIntervals(dict.fromkeys(fars), None)
    drawn = np.random.default_rng([seed, 505]).multinomial(people, np.full(people, 1 / people), size=draws)
    levels = np.unique(np.append(0, np.geomspace(1, len(impostor), _LEVELS).round().astype(int)))
    accepted = _accepted(drawn, one[::-1], other[::-1], levels)
    # Without a genuine or an impostor pair, a draw has no rates.
    kept = drawn[:, np.unique(owner)].any(1) & (accepted[:, -1] > 0)
    drawn, accepted = drawn[kept], accepted[kept]
    # Thresholds right at each distinct genuine score, and right above it.
    distinct, start = np.unique(genuine, return_index=True)
    below = np.stack([start, np.append(start[1:], len(genuine))], 1).ravel()
    sides = (np.searchsorted(impostor, distinct, side) for side in ("left", "right"))
    above = len(impostor) - np.stack(list(sides), 1).ravel()
    rates = []
    for weight, row in zip(drawn, accepted, strict=True):
        refused = np.append(0, np.cumsum(weight[owner])) / weight[owner].sum()
        ranks = np.interp([far * row[-1] for far in fars], row, levels)
        eer = _eer(np.append(np.interp(above, levels, row / row[-1]), 0.0), np.append(refused[below], 1.0))
        rates.append([*(_tar(genuine, impostor, refused, int(rank + 1e-6)) for rank in ranks), eer])
    roc = Roc(genuine, impostor)
    *tars, eer = np.quantile(np.array(rates), _ENDS, axis=0).T
    found = {}
    for far, ends in zip(fars, tars, strict=True):
        tar = roc.tar_at(far)
        found[far] = None if tar is None else _around(tar, ends)
    return RocIntervals(found, _around(roc.eer(), eer))


def rank_interval(right: np.ndarray, people: np.ndarray) -> Interval | None:
    """Of the share of probes (M,) found, as `rank1` gives them; None where `people` are fewer than `FEWEST`."""
    return people_interval(right, people) if len(np.unique(people)) >= FEWEST else None


def people_interval(values: np.ndarray, people: np.ndarray, draws: int = 2000) -> Interval:
    """Of the mean of values (M,), each of one of `people` (M,), who are drawn with replacement."""
    owner = np.unique(people, return_inverse=True)[1]
    sums, counts = np.bincount(owner, weights=values), np.bincount(owner)
    drawn = np.random.default_rng(404).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    return _around(float(values.mean()), np.quantile((drawn @ sums) / (drawn @ counts), _ENDS))


def _sorted(scores: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(scores)
    return [scores[order], *(column[order] for column in columns)]


def _accepted(drawn: np.ndarray, one: np.ndarray, other: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """(draws, levels): the weight of so many of the first impostor pairs, in each draw. By way of the pairs between
    each two people, which are far fewer than pairs."""
    weight, people = drawn.astype(np.float32), drawn.shape[1]
    found = np.zeros((len(drawn), len(levels)))
    for k, (start, stop) in enumerate(itertools.pairwise(levels), 1):
        places = one[start:stop].astype(np.int64) * people + other[start:stop]
        between = np.bincount(places, minlength=people**2).reshape(people, people).astype(np.float32)
        found[:, k] = found[:, k - 1] + (weight @ between * weight).sum(1, dtype=np.float64)
    return found


def _tar(genuine: np.ndarray, impostor: np.ndarray, refused: np.ndarray, accepted: int) -> float:
    """`Roc.tar_at` with weights: the `accepted` highest impostor scores are, refused[k]: share of the k lowest genuine
    ones."""
    below = 0 if accepted == len(impostor) else np.searchsorted(genuine, impostor[-1 - accepted], side="right")
    return float(1 - refused[below])


def _eer(fmr: np.ndarray, fnmr: np.ndarray) -> float:
    """Where the two cross, on straight lines; fmr falls, fnmr rises from 0."""
    gap = fmr - fnmr
    after = int(np.argmax(gap <= 0))
    if after == 0:
        return 0.0
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(fmr[after - 1] + share * (fmr[after] - fmr[after - 1]))


def _around(figure: float, ends: np.ndarray) -> Interval:
    return min(float(ends[0]), figure), max(float(ends[1]), figure)
