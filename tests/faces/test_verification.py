"""Every figure of verification against the loop that defines it."""

import csv
import itertools
from fractions import Fraction
from math import erfc, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faces import verification
from faces.errors import UserError
from faces.verification import (
    MIN_FALSE_MATCHES,
    Pairs,
    Roc,
    all_pairs,
    best_threshold,
    correct_by_fold,
    make_pairs,
    rank1,
    read_pairs,
    similarity,
    similarity_matrix,
)

# Few values, so that ties are the rule; neighbouring floats, between which there is no middle.
_SCORES = st.sampled_from([-1.0, -0.5, 0.0, 0.1, float(np.nextafter(0.1, 1)), 0.25, 0.9, 1.0])


def _accuracy(scores, same, threshold):
    return np.mean([(score >= threshold) == bool(s) for score, s in zip(scores, same, strict=True)])


def _best_accuracy(scores, same):
    """By trying every threshold that makes a difference."""
    return max(_accuracy(scores, same, t) for t in [*scores, np.inf])


def _pairs(same, fold):
    count = len(same)
    return Pairs(np.arange(count), np.arange(count), np.array(same, dtype=bool), np.array(fold))


@given(st.lists(st.tuples(_SCORES, st.booleans()), min_size=1, max_size=25), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=200, deadline=None)
def test_no_threshold_is_better(rows, kind):
    scores = np.array([row[0] for row in rows], dtype=kind)
    same = np.array([row[1] for row in rows])
    threshold = best_threshold(scores, same)
    # Compared as the callers compare: an array of `kind` with a Python float.
    assert np.mean((scores >= threshold) == same) == pytest.approx(_best_accuracy(scores, same))


def test_the_threshold_lies_midway_and_large_scores_can_be_told_apart():
    assert best_threshold(np.array([0.2, 0.8]), np.array([False, True])) == pytest.approx(0.5)
    for scores in (np.float32([100, 200]), -np.float32([1e6, 1e7])):
        assert not (scores >= best_threshold(scores, np.array([False, False]))).any()
        assert (scores >= best_threshold(scores, np.array([True, True]))).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_each_fold_is_judged_by_the_others(data):
    count = data.draw(st.integers(6, 30))
    scores = np.array(data.draw(st.lists(_SCORES, min_size=count, max_size=count)))
    same = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    folds = data.draw(st.integers(2, 4))
    pairs = _pairs(same, np.arange(count) % folds)
    correct = correct_by_fold(scores, pairs)
    for i in range(count):
        others = [j for j in range(count) if j % folds != i % folds]
        threshold = best_threshold(scores[others], same[others])
        assert correct[i] == ((scores[i] >= threshold) == same[i])


def test_a_fold_does_not_choose_its_own_threshold():
    # Fold 1 alone would be perfect at .85; the threshold of fold 0, .5, gets its impostors wrong.
    scores = np.array([0.1, 0.9, 0.8, 0.9])
    correct = correct_by_fold(scores, _pairs([False, True, False, True], [0, 0, 1, 1]))
    assert correct.tolist() == [True, True, False, True]


@given(st.lists(st.integers(-1, 4), min_size=8, max_size=30), st.integers(0, 3), st.integers(2, 30))
@settings(max_examples=100, deadline=None)
def test_pairs_are_balanced_distinct_and_spread_evenly(identities, seed, most):
    identities, folds = np.array(identities), 2
    indices = [i for i in range(len(identities)) if identities[i] >= 0]
    genuine = sum(identities[i] == identities[j] for i in indices for j in indices if i < j)
    impostor = len(indices) * (len(indices) - 1) // 2 - genuine
    count = min(genuine, impostor, most)
    if count < folds:
        with pytest.raises(UserError, match=rf"{genuine} genuine and {impostor} impostor pairs; 2 folds need"):
            make_pairs(identities, seed, most, folds)
        return
    pairs = make_pairs(identities, seed, most, folds)
    assert pairs.same.sum() == (~pairs.same).sum() == count
    np.testing.assert_array_equal(pairs.same, identities[pairs.a] == identities[pairs.b])
    assert (identities[pairs.a] >= 0).all()
    assert (identities[pairs.b] >= 0).all()
    assert len({frozenset(pair) for pair in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)}) == 2 * count
    assert (pairs.a != pairs.b).all()
    for kind in (pairs.same, ~pairs.same):
        sizes = np.bincount(pairs.fold[kind], minlength=folds)
        assert sizes.max() - sizes.min() <= 1
    assert pairs.folds == folds
    again = make_pairs(identities, seed, most, folds)
    np.testing.assert_array_equal(pairs.a, again.a)


def test_pairs_are_drawn_evenly_from_all():
    identities = np.repeat(np.arange(10), 10)
    drawn = np.zeros(100)
    for seed in range(20):
        pairs = make_pairs(identities, seed, most=100)
        assert np.bincount(pairs.fold[pairs.same]).tolist() == [10] * 10
        drawn += np.bincount(pairs.a, minlength=100) + np.bincount(pairs.b, minlength=100)
    # 8,000 places among 100 faces: 80 each, standard deviation 9.
    assert drawn.min() > 45
    assert drawn.max() < 120


def _csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("key_a", "key_b", "same", "fold"), *rows])
    return path


def test_fixed_pairs_are_found_by_key_or_by_its_end(tmp_path):
    keys = ("set/a/1", "set/b/1", "set/b/2", "3", "set/c/3")
    rows = [("set/a/1", "b/1", 1, 5), ("2", "3", 0, 9), ("c/3", "2", 0, 5), ("b/1", "2", 1, 9)]
    pairs = read_pairs(_csv(tmp_path / "pairs.csv", rows), keys)
    assert pairs.a.tolist() == [0, 2, 4, 1]
    assert pairs.b.tolist() == [1, 3, 2, 2]
    assert pairs.same.tolist() == [True, False, False, True]
    assert pairs.fold.tolist() == [0, 1, 0, 1]
    assert pairs.folds == 2


def test_a_fold_whose_threshold_one_class_alone_would_set_is_refused(tmp_path):
    path = _csv(tmp_path / "pairs.csv", [("1", "2", 1, 0), ("3", "4", 1, 0), ("1", "3", 0, 1), ("2", "4", 0, 1)])
    with pytest.raises(UserError, match="outside each of two folds or more"):
        read_pairs(path, ("1", "2", "3", "4"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_embedding_that_is_no_number_is_refused(metric, value):
    rng = np.random.default_rng(0)
    good, bad = rng.standard_normal((2, 8, 4))
    bad[3, 1] = value
    for compare in (similarity, similarity_matrix):
        compare(good, good, metric)
        with pytest.raises(UserError, match=r"^1 embeddings are not finite"):
            compare(good, bad, metric)
    with pytest.raises(UserError, match=r"^1 embeddings are not finite"):
        rank1(bad, bad, np.arange(8) // 2, metric)


def test_a_key_that_fits_two_faces_is_refused(tmp_path):
    path = _csv(tmp_path / "pairs.csv", [("a/1", "1", 1, 0), ("a/1", "b/1", 0, 1)])
    with pytest.raises(UserError, match=r"names 1 faces that the test set lacks or has twice, e.g. \['1'\]"):
        read_pairs(path, ("set/a/1", "set/b/1"))
    with pytest.raises(UserError, match=r"none\.csv is no list of pairs"):
        read_pairs(tmp_path / "none.csv", ())


def test_the_fixed_pairs_of_the_development_sets_are_read(shared):
    path = shared / "data" / "pairs-val-b-000.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = sorted({row[side] for row in rows for side in ("key_a", "key_b")})
    pairs = read_pairs(path, tuple(f"val-b-000/{key.rsplit('/', 1)[-1]}" for key in keys))
    assert (len(pairs.a), pairs.same.sum(), pairs.folds) == (6000, 3000, 10)
    assert [keys[i] for i in pairs.a] == [row["key_a"] for row in rows]
    assert [keys[i] for i in pairs.b] == [row["key_b"] for row in rows]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scores_are_the_textbook_ones(metric):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 5)) * 3, rng.normal(size=(6, 5))
    a[0] = 0
    b[1] = a[1]
    naive = np.zeros((6, 6))
    for i in range(6):
        for j in range(6):
            if metric == "euclidean":
                naive[i, j] = -(sum((x - y) ** 2 for x, y in zip(a[i], b[j], strict=True)) ** 0.5)
            elif i:
                naive[i, j] = sum(a[i] * b[j]) / (sum(a[i] ** 2) ** 0.5 * sum(b[j] ** 2) ** 0.5)
    np.testing.assert_allclose(similarity_matrix(a, b, metric), naive, atol=1e-6)
    np.testing.assert_allclose(similarity(a, b, metric), np.diag(naive), atol=1e-9)


def _roc(genuine, impostor, kind=np.float64):
    return Roc(np.sort(np.array(genuine, dtype=kind)), np.sort(np.array(impostor, dtype=kind)))


@given(
    st.lists(_SCORES, min_size=1, max_size=60), st.sampled_from([0.05, 0.07, 0.1, 0.3, 0.5, 0.999, 1.0]), st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_the_threshold_at_a_false_match_rate_is_the_lowest_allowed(impostor, far, single):
    kind = np.float32 if single else np.float64
    roc = _roc([0.5], impostor, kind)
    threshold = roc.threshold_at(far)
    allowed = next(k for k in range(len(impostor), -1, -1) if k <= far * len(impostor) + 1e-6)
    if allowed < MIN_FALSE_MATCHES:
        assert threshold is None
        assert roc.tar_at(far) is None
        return
    assert (roc.impostor >= threshold).sum() <= allowed
    lower = [score for score in roc.impostor if score < threshold]
    assert not lower or (roc.impostor >= lower[-1]).sum() > allowed


def test_the_true_accept_rate_is_counted_at_that_threshold():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(1, 1, 500), rng.normal(0, 1, 1000)
    for kind in (np.float32, np.float64):
        roc = _roc(genuine, impostor, kind)
        for far in (0.01, 0.1, 0.5):
            limit = np.sort(impostor.astype(kind))[::-1][int(1000 * far)]
            assert roc.tar_at(far) == np.mean(genuine.astype(kind) > limit)
        assert roc.tar_at(0.009) is None
        assert roc.tar_at(0.01) is not None
    assert _roc(genuine, np.zeros(1000)).tar_at(0.1) == np.mean(genuine > 0)
    assert _roc(genuine, impostor).tar_at(1.0) == np.mean(genuine >= impostor.min())


@given(st.lists(_SCORES, min_size=1, max_size=20), st.lists(_SCORES, min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_the_equal_error_rate_is_where_the_two_errors_cross(genuine, impostor):
    points = [
        (Fraction(sum(s >= t for s in impostor), len(impostor)), Fraction(sum(s < t for s in genuine), len(genuine)))
        for t in sorted({*genuine, *impostor, np.inf})
    ]
    crossings = set()
    for (fmr, fnmr), (next_fmr, next_fnmr) in itertools.pairwise(points):
        if (fmr - fnmr) * (next_fmr - next_fnmr) <= 0:
            share = (fmr - fnmr) / (fmr - fnmr - next_fmr + next_fnmr)
            crossings.add(fmr + share * (next_fmr - fmr))
    assert len(crossings) == 1
    assert _roc(genuine, impostor).eer() == pytest.approx(float(crossings.pop()))


def test_the_equal_error_rate_of_two_bells_is_the_analytic_one():
    rng = np.random.default_rng(0)
    roc = _roc(rng.normal(2, 1, 20_000), rng.normal(0, 1, 20_000))
    assert roc.eer() == pytest.approx(erfc(1 / sqrt(2)) / 2, abs=0.005)
    assert _roc([3, 4], [1, 2]).eer() == 0
    assert _roc([1], [1]).eer() == 0.5


@given(st.lists(_SCORES, min_size=1, max_size=40), st.lists(_SCORES, min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_each_point_of_the_curve_is_reached_by_a_threshold(genuine, impostor):
    fmr, tmr = _roc(genuine, impostor).curve()
    reachable = {(1.0, 1.0)} | {
        (round(sum(s >= t for s in impostor) / len(impostor), 9), round(sum(s >= t for s in genuine) / len(genuine), 9))
        for t in impostor
    }
    points = [(round(x, 9), round(y, 9)) for x, y in zip(fmr, tmr, strict=True)]
    assert set(points) <= reachable
    assert points == sorted(points)
    assert points[-1] == (1.0, 1.0)


def test_a_large_curve_is_short_and_reaches_the_lowest_rate():
    rng = np.random.default_rng(0)
    fmr, tmr = _roc(rng.normal(2, 1, 1000), rng.normal(0, 1, 50_000)).curve(60)
    assert len(fmr) == len(tmr) <= 60
    assert fmr[0] == pytest.approx(1 / 50_000)
    assert np.diff(np.log(fmr)).max() < 0.8


def test_a_roc_holds_each_pair_of_labelled_faces_once():
    rng = np.random.default_rng(0)
    identities = np.array([0, 1, -1, 0, 1, 1])
    x, y = rng.normal(size=(2, 6, 4))
    one = Roc.of(all_pairs(x, x, identities, "cosine"))
    two = Roc.of(all_pairs(x, y, identities, "cosine"))
    known = [0, 1, 3, 4, 5]

    def scores(first, second, wanted, ordered):
        return sorted(
            float(similarity(first[i : i + 1], second[j : j + 1], "cosine")[0])
            for i in known
            for j in known
            if (i != j if ordered else i < j) and (identities[i] == identities[j]) == wanted
        )

    np.testing.assert_allclose(one.genuine, scores(x, x, True, False))
    np.testing.assert_allclose(one.impostor, scores(x, x, False, False))
    np.testing.assert_allclose(two.genuine, scores(x, y, True, True))
    np.testing.assert_allclose(two.impostor, scores(x, y, False, True))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rank_1_is_the_share_of_probes_that_find_their_own(metric):
    rng = np.random.default_rng(1)
    identities = np.array([2, 0, -1, 0, 1, 2, 1, 1, 0])
    first, second = rng.normal(size=(2, 9, 3)) + 1.2 * np.eye(3)[identities]
    gallery = {0: 1, 1: 4, 2: 0}
    right = []
    for probe in range(9):
        person = identities[probe]
        if person < 0 or probe == gallery[person]:
            continue
        scores = {
            other: similarity(second[probe][None], first[index][None], metric)[0] for other, index in gallery.items()
        }
        right.append(max(scores, key=scores.get) == person)
    assert len(right) == 5
    assert 0 < np.mean(right) < 1
    found, people = rank1(first, second, identities, metric)
    assert found.tolist() == right
    assert people.tolist() == [0, 2, 1, 1, 0]


def test_one_impostor_is_enough_to_be_counted():
    roc = _roc([0.5, 0.7], [0.6])
    assert roc.threshold_at(0.5) is None
    # At .6 all impostors pass and at .7 none, while one genuine pair of two fails.
    assert roc.eer() == pytest.approx(0.5)
    assert roc.curve() == ([1.0], [1.0])


def test_pairs_of_very_many_faces_are_those_of_some_people(monkeypatch):
    identities = np.concatenate([np.repeat(np.arange(40), 5), np.full(60, 40), np.full(30, -1)])
    vectors = np.random.default_rng(0).normal(size=(len(identities), 4)).astype(np.float32)
    every = Roc.of(all_pairs(vectors, vectors, identities, "cosine"))
    assert len(every.genuine) == 40 * 10 + 60 * 59 // 2
    # Fifty faces: ten of the small people; the large one never fits.
    monkeypatch.setattr(verification, "MOST_FACES", 50)
    some = Roc.of(all_pairs(vectors, vectors, identities, "cosine"))
    assert (len(some.genuine), len(some.impostor)) == (10 * 10, 50 * 49 // 2 - 100)
    pairs = make_pairs(identities, 0, most=1000)
    people = np.unique(identities[np.concatenate([pairs.a, pairs.b])])
    assert len(people) == 10
    assert people.max() < 40
    assert pairs.same.sum() == 100
