from types import SimpleNamespace

import numpy as np
import pytest

from compress.evaluate import protocol_rows, row
from faces.intervals import people_interval, roc_intervals
from faces.verification import Pairs, all_pairs, make_pairs, rank1

IDENTITIES = np.repeat(np.arange(6), 4)
TEST = SimpleNamespace(identities=IDENTITIES)


def embeddings(noise, seed=0):
    rng = np.random.default_rng(seed)
    return (np.repeat(rng.standard_normal((6, 8)), 4, 0) + noise * rng.standard_normal((24, 8))).astype(np.float32)


def naive_accuracy(first, second, metric, pairs):
    """Share of pairs that are right at the threshold which is best on the other folds, tried one by one."""

    def score(i, j):
        if metric == "euclidean":
            return -np.sqrt(((first[i] - second[j]) ** 2).sum())
        return first[i] @ second[j] / np.linalg.norm(first[i]) / np.linalg.norm(second[j])

    scores = np.array([score(i, j) for i, j in zip(pairs.a, pairs.b, strict=True)])
    right = 0
    for fold in range(pairs.folds):
        inside = pairs.fold == fold
        levels = np.sort(scores[~inside])
        thresholds = [levels[0] - 1, *((levels[1:] + levels[:-1]) / 2), levels[-1] + 1]
        best = max(thresholds, key=lambda t: ((scores[~inside] >= t) == pairs.same[~inside]).sum())
        right += ((scores[inside] >= best) == pairs.same[inside]).sum()
    return 100 * right / len(scores)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_a_rows_accuracy_is_that_of_a_naive_count(metric, noise):
    first, second = embeddings(noise), embeddings(noise, seed=0)[::1] + 0.2
    pairs = make_pairs(IDENTITIES, 0, most=30, folds=5)
    found = row("student", "cross@16", first, second, metric, TEST, pairs)
    assert found["accuracy"] == pytest.approx(naive_accuracy(first, second, metric, pairs), abs=1e-3)
    assert found["ci95"][0] <= found["accuracy"] <= found["ci95"][1]
    assert (found["pairs"], found["folds"], found["model"], found["protocol"]) == (60, 5, "student", "cross@16")
    right, people = rank1(first, second, IDENTITIES, metric)
    assert found["rank1"] == pytest.approx(100 * right.mean(), abs=1e-3)
    assert found["rank1_ci95"] == pytest.approx([100 * end for end in people_interval(right, people)], abs=1e-3)
    spread = roc_intervals(all_pairs(first, second, IDENTITIES, metric), [0.1])
    assert found["tar_ci95"]["1e-1"] == pytest.approx([100 * end for end in spread.tar[0.1]], abs=1e-3)
    assert found["tar_ci95"]["1e-4"] is None is found["tar_at_far"]["1e-4"]
    assert found["eer_ci95"] == pytest.approx([100 * end for end in spread.eer], abs=1e-3)
    assert found["roc"]["fmr"][-1] == found["roc"]["tmr"][-1] == 1


def test_the_first_face_of_a_pair_is_taken_from_the_first_embedding():
    first, second = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[1, 0, 3, 2]]
    # Face 0 at full size looks like face 1 at low resolution, and so on.
    pairs = Pairs(
        np.array([0, 2, 0, 2, 0, 1, 0, 1]), np.array([1, 3, 1, 3, 2, 3, 3, 2]),
        np.array([True] * 4 + [False] * 4), np.array([0, 1] * 4),
    )  # fmt: skip
    test = SimpleNamespace(identities=np.array([0, 0, 1, 1]))
    assert row("m", "cross@8", first, second, "cosine", test, pairs)["accuracy"] == 100
    swapped = row("m", "cross@8", first, first, "cosine", test, pairs)["accuracy"]
    assert swapped < 100


def test_the_protocols_take_the_resolutions_that_they_name():
    by_px = {None: embeddings(0.1), 16: embeddings(0.8, seed=1), 8: embeddings(2.0, seed=2)}
    asked = []

    def embed(px):
        asked.append(px)
        return by_px[px]

    pairs = make_pairs(IDENTITIES, 0, most=30, folds=5)
    rows = {one["protocol"]: one for one in protocol_rows("teacher", embed, "cosine", TEST, pairs, (16, 8))}
    assert asked == [None, 16, 8]  # each is embedded once
    wanted = {
        "full": (None, None), "same@16": (16, 16), "cross@16": (None, 16), "same@8": (8, 8), "cross@8": (None, 8),
    }  # fmt: skip
    assert set(rows) == set(wanted)
    for protocol, (first, second) in wanted.items():
        assert rows[protocol]["model"] == "teacher"
        naive = naive_accuracy(by_px[first], by_px[second], "cosine", pairs)
        assert rows[protocol]["accuracy"] == pytest.approx(naive, abs=1e-3)


def test_rates_that_too_few_impostors_measure_are_left_open():
    found = row("m", "full", embeddings(0.5), embeddings(0.5), "cosine", TEST, make_pairs(IDENTITIES, 0, 30, 5))
    assert set(found["tar_at_far"]) == {"1e-1", "1e-2", "1e-3", "1e-4"}
    assert found["tar_at_far"]["1e-1"] is not None
    assert found["tar_at_far"]["1e-3"] is None
    assert found["tar_at_far"]["1e-4"] is None
