"""Intervals of what all pairs say: against the loop over people drawn, and against what is known of the scores."""

import numpy as np
import pytest

from faces.intervals import people_interval, roc_intervals
from faces.verification import AllPairs, Roc, all_pairs


def _faces(people, each, seed=0, spread=0.9):
    rng = np.random.default_rng(seed)
    identities = np.arange(people).repeat(each)
    return rng.normal(size=(people, 8))[identities] + spread * rng.normal(size=(people * each, 8)), identities


def _by_copies(pairs, weight, fars):
    """Each pair written out as often as its people were drawn."""
    times = np.where(pairs.same, weight[pairs.first], weight[pairs.first] * weight[pairs.second])
    copies = np.repeat(np.arange(len(times)), times)
    roc = Roc(*(np.sort(pairs.scores[copies][pairs.same[copies] == kind]) for kind in (True, False)))
    # A draw has the rates even where the copies would be too few for the figure itself.
    thresholds = [np.nextafter(roc.impostor[-1 - int(far * len(roc.impostor) + 1e-6)], np.inf) for far in fars]
    return [*((roc.genuine >= one).mean() for one in thresholds), roc.eer()]


@pytest.mark.parametrize("two", [False, True])
def test_the_intervals_are_those_of_people_written_out_as_often_as_they_were_drawn(two):
    faces, identities = _faces(12, 7)
    other = faces + 0.2 * np.random.default_rng(9).normal(size=faces.shape) if two else faces
    pairs = all_pairs(faces, other, identities, "cosine")
    fars = (0.1, 0.02)
    found = roc_intervals(pairs, fars, draws=150, seed=3)
    drawn = np.random.default_rng([3, 505]).multinomial(12, np.full(12, 1 / 12), size=150)
    low, high = np.quantile([_by_copies(pairs, weight, fars) for weight in drawn], [0.025, 0.975], axis=0)
    for k, interval in enumerate([*found.tar.values(), found.eer]):
        assert interval == pytest.approx((low[k], high[k]), abs=0.006)
        assert high[k] - low[k] > 0.02


def test_where_all_people_are_alike_and_pairs_independent_the_width_is_the_binomial_one():
    rng = np.random.default_rng(1)
    people, each = 400, 2
    genuine, impostor = np.arange(people).repeat(each), rng.integers(people, size=(2, 40_000))
    impostor = impostor[:, impostor[0] != impostor[1]]
    same = np.arange(len(genuine) + impostor.shape[1]) < len(genuine)
    scores = rng.normal(size=len(same)) + 1.5 * same
    pairs = AllPairs(scores, same, *(np.append(genuine, one).astype(np.int32) for one in impostor))
    low, high = roc_intervals(pairs, (0.1,), draws=1000).tar[0.1]
    share = Roc.of(pairs).tar_at(0.1)
    # The threshold's own error, .002 of FAR, adds little to that of 800 genuine pairs.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / len(genuine)), rel=0.15)


def test_a_person_whom_many_are_mistaken_for_makes_the_interval_wide():
    rng = np.random.default_rng(2)
    first, second = np.triu_indices(60, 1)
    genuine = np.arange(60).repeat(20)
    same = np.arange(len(genuine) + len(first)) < len(genuine)
    whose = [np.append(genuine, one).astype(np.int32) for one in (first, second)]

    def width(lambs):
        scores = rng.normal(size=len(same)) + 2 * same
        # The same number of high impostor scores, of a few people or of pairs drawn from all.
        many = rng.permutation(np.flatnonzero(~same))[: (np.isin(first, range(3)) | np.isin(second, range(3))).sum()]
        scores[(np.isin(whose[0], range(3)) | np.isin(whose[1], range(3))) & ~same if lambs else many] += 2
        low, high = roc_intervals(AllPairs(scores, same, *whose), (0.05,)).tar[0.05]
        return high - low

    assert width(True) > 1.5 * width(False)


def test_a_rate_that_too_few_impostors_resolve_has_no_interval_and_the_figure_lies_in_its_own():
    faces, identities = _faces(8, 5)
    pairs = all_pairs(faces, faces, identities, "euclidean")
    found = roc_intervals(pairs, (0.1, 0.001))
    assert found.tar[0.001] is None
    roc = Roc.of(pairs)
    assert found.tar[0.1][0] <= roc.tar_at(0.1) <= found.tar[0.1][1]
    assert found.eer[0] <= roc.eer() <= found.eer[1]


def test_scores_without_an_error_have_intervals_without_a_width():
    identities = np.arange(10).repeat(3)
    faces = np.eye(10)[identities]
    found = roc_intervals(all_pairs(faces, faces, identities, "cosine"), (0.1,))
    assert (found.tar[0.1], found.eer) == ((1, 1), (0, 0))


def test_values_of_the_same_person_are_drawn_together():
    rng = np.random.default_rng(4)
    right = rng.random(200) < 0.7
    people = rng.permutation(200) - 50
    low, high = people_interval(right, people)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 200), rel=0.15)
    low, high = people_interval(right.repeat(4), people.repeat(4))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 200), rel=0.15)
