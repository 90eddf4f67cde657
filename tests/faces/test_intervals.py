"""Intervals: against the sum over pairs that share a person, the loop over people drawn, and what is known."""

import numpy as np
import pytest
from scipy import stats

from faces.intervals import pair_interval, people_interval, rank_interval, roc_intervals
from faces.verification import AllPairs, Pairs, Roc, all_pairs, make_pairs


def _faces(people, each, seed=0, spread=0.9):
    rng = np.random.default_rng(seed)
    identities = np.arange(people).repeat(each)
    return rng.normal(size=(people, 8))[identities] + spread * rng.normal(size=(people * each, 8)), identities


def _many(people, each):
    """`each` genuine pairs of each of `people`, as many impostors, whose faces show people of no other pair."""
    count = people * each
    identities = np.concatenate([np.repeat(np.arange(people), each), people + np.arange(2 * count)])
    same = np.repeat([True, False], count)
    a = np.concatenate([np.arange(count), count + np.arange(count)])
    b = np.concatenate([np.arange(count), 2 * count + np.arange(count)])
    return Pairs(a, b, same, np.zeros(2 * count, dtype=int)), identities


def test_the_interval_of_pairs_is_the_sum_over_pairs_that_share_a_person():
    """Against the loop over all pairs of pairs that the variance is defined by."""
    rng = np.random.default_rng(3)
    identities = np.arange(9).repeat(5)
    identities[::7] = -1
    pairs = make_pairs(identities, 0, most=60, folds=5)
    whose = [{int(identities[i]) for i in two} for two in zip(pairs.a, pairs.b, strict=True)]
    hard = np.array([bool(two & {3, 4}) for two in whose])
    for values in (rng.random(len(hard)) < np.where(hard, 0.3, 0.9), np.where(hard, rng.choice([-1.0, 1.0]), 0.0)):
        away, people, ends = np.zeros(len(whose)), [], np.zeros(2)
        for kind in (pairs.same, ~pairs.same):
            people.append(len(set.union(*(two for two, is_one in zip(whose, kind, strict=True) if is_one))))
            away[kind] = (values[kind] - values[kind].mean()) * np.sqrt(people[-1] / (people[-1] - 1))
            ends += np.array([values[kind].min(), values[kind].max()]) / 2
        variance = sum(
            away[i] * away[j] for i in range(len(away)) for j in range(len(away)) if whose[i] & whose[j]
        ) / len(away) ** 2  # fmt: skip
        half = stats.t.ppf(0.975, min(people) - 1) * np.sqrt(variance)
        expected = np.clip([values.mean() - half, values.mean() + half], *ends)
        assert pair_interval(values, pairs, identities) == pytest.approx(tuple(expected))


def test_the_interval_has_the_analytic_width_where_errors_are_independent():
    pairs, identities = _many(1000, 1)
    rng = np.random.default_rng(0)
    correct = rng.random(2000) < np.where(pairs.same, 0.9, 0.8)
    low, high = pair_interval(correct, pairs, identities)
    rates = [correct[pairs.same].mean(), correct[~pairs.same].mean()]
    width = 2 * 1.96 * np.sqrt(sum(0.25 * rate * (1 - rate) / 1000 for rate in rates))
    assert high - low == pytest.approx(width, rel=0.01)
    assert (high + low) / 2 == pytest.approx(correct.mean())
    # The same as a difference of two models, whose values are not 0 and 1.
    other = pair_interval(correct * 1.0 - 0.25, pairs, identities)
    np.testing.assert_allclose(np.add(other, 0.25), (low, high))


def test_the_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    pairs, identities = _many(60, 5)
    covered = 0
    for _ in range(100):
        # Each person has a rate of their own, whose mean is .8.
        rate = np.concatenate([rng.beta(8, 2, 60)[identities[:300]], np.full(300, 0.8)])
        low, high = pair_interval(rng.random(600) < rate, pairs, identities)
        covered += low <= 0.8 <= high
    assert 88 <= covered <= 100


def test_a_person_who_owns_all_errors_makes_the_interval_wide():
    pairs, identities = _many(20, 50)
    correct = np.ones(2000, dtype=bool)
    spread_out, owned = correct.copy(), correct.copy()
    spread_out[np.arange(0, 1000, 20)] = False
    owned[:50] = False
    widths = [np.subtract(*pair_interval(one, pairs, identities)[::-1]) for one in (spread_out, owned)]
    assert widths[1] > 3 * widths[0]
    assert pair_interval(correct, pairs, identities) == (1.0, 1.0)


def test_impostor_pairs_that_share_a_person_are_not_independent():
    first, second = np.triu_indices(40, 1)
    identities = np.arange(40)
    pairs = Pairs(np.append(identities, first), np.append(identities, second), np.arange(820) < 40, np.zeros(820, int))
    lambs = np.ones(820, dtype=bool)
    lambs[40:][(first < 4) | (second < 4)] = False
    scattered = np.append(np.ones(40, dtype=bool), np.random.default_rng(0).permutation(lambs[40:]))
    widths = [np.subtract(*pair_interval(one, pairs, identities)[::-1]) for one in (scattered, lambs)]
    assert widths[1] > 3 * widths[0]


def test_errors_that_cancel_within_a_person_do_not_make_the_interval_narrower_than_independent_ones():
    ring = np.arange(40)
    pairs = Pairs(np.append(ring, ring), np.append(ring, (ring + 1) % 40), np.arange(80) < 40, np.zeros(80, int))
    correct = np.append(np.ones(40), ring % 2)
    low, high = pair_interval(correct, pairs, ring)
    half = stats.t.ppf(0.975, 39) * np.sqrt(40 * (0.5 / 80) ** 2 * 40 / 39)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half))


def test_few_who_own_all_genuine_pairs_are_as_few_as_they_are():
    """Of one person's genuine pairs nothing is known of others; of three, hardly anything."""
    rng = np.random.default_rng(5)
    identities = np.append(np.arange(3), 3 + np.arange(400))

    def of(owners):
        genuine = np.arange(owners).repeat(300 // owners)
        a, b = np.append(genuine, 3 + np.arange(200)), np.append(genuine, 203 + np.arange(200))
        pairs = Pairs(a, b, np.arange(len(a)) < len(genuine), np.zeros(len(a), int))
        right = rng.random(len(a)) < np.where(pairs.same, np.array([0.6, 0.9, 0.9])[np.minimum(a, 2)], 0.9)
        return np.subtract(*pair_interval(right, pairs, identities)[::-1])

    assert of(1) == 1
    assert of(3) > 0.3


def test_no_rate_lies_beyond_what_it_can_be():
    pairs, identities = _many(6, 4)
    found = np.where(pairs.same, 2.0 * (np.arange(48) > 5), 0.0)  # A share of the genuine pairs alone.
    low, high = pair_interval(found, pairs, identities)
    assert 0 <= low < found.mean() < high <= 1


def test_unlabelled_faces_of_fixed_pairs_are_not_one_person():
    pairs, _ = _many(400, 1)
    correct = np.random.default_rng(0).random(800) < 0.8
    correct[~pairs.same] = True
    low, high = pair_interval(correct, pairs, np.full(1200, -1))
    assert high - low == pytest.approx(2 * 1.96 * 0.5 * np.sqrt(0.16 / 400), rel=0.15)


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


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_an_equal_error_rate_of_scores_that_tie_is_that_of_their_thresholds(digits):
    faces, identities = _faces(12, 7)
    pairs = all_pairs(faces, faces, identities, "cosine")
    scores = np.zeros_like(pairs.scores) if digits is None else pairs.scores.round(digits)
    pairs = AllPairs(scores, pairs.same, pairs.first, pairs.second)
    low, high = roc_intervals(pairs, (0.1,), draws=150, seed=3).eer
    drawn = np.random.default_rng([3, 505]).multinomial(12, np.full(12, 1 / 12), size=150)
    expected = np.quantile([_by_copies(pairs, weight, ())[-1] for weight in drawn], [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.006)


def test_of_fewer_than_five_people_no_interval_is_stated():
    faces, identities = _faces(4, 8)
    found = roc_intervals(all_pairs(faces, faces, identities, "cosine"), (0.1,))
    assert (found.tar, found.eer) == ({0.1: None}, None)
    assert rank_interval(np.ones(28), identities[4:]) is None
    assert rank_interval(np.ones(40), np.arange(5).repeat(8)) == (1, 1)


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
