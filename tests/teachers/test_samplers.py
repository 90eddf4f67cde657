import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faces.errors import UserError
from teachers.samplers import Stream, shuffled, two_per_identity

COUNTS = st.lists(st.integers(2, 9), min_size=4, max_size=12)


def labels_of(counts: list[int], unlabelled: int = 3) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).permutation(np.concatenate([labels, np.full(unlabelled, -1)]))


@given(COUNTS, st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_pairs_are_two_faces_of_each_of_half_a_batch_of_people(counts, epoch) -> None:
    labels = labels_of(counts)
    batches = list(two_per_identity(labels, 8, 7, epoch))
    assert batches
    used = np.concatenate(batches)
    assert len(set(used)) == len(used), "an image is seen once an epoch at most"
    for batch in batches:
        people, seen = np.unique(labels[batch], return_counts=True)
        assert len(people) == 4
        assert (seen == 2).all()
        assert people.min() >= 0
        assert (labels[batch][::2] == labels[batch][1::2]).all()
    left = np.bincount(labels[labels >= 0]) - np.bincount(labels[used], minlength=len(counts))
    assert (left >= 2).sum() < 4, "an epoch goes on while four people have two images left"


def test_people_with_more_unused_images_come_more_often() -> None:
    counts = [40] + [4] * 30
    labels = labels_of(counts)
    first = [np.isin(0, labels[next(two_per_identity(labels, 8, seed, 0))]) for seed in range(200)]
    # In proportion to the images not yet used it is chosen in 70% of the first batches; evenly it would be in 13%.
    assert np.mean(first) > 0.55


def test_every_labelled_face_once_an_epoch() -> None:
    labels = labels_of([5] * 8)
    seen = np.concatenate(list(shuffled(labels, 10, 3, 0)))
    np.testing.assert_array_equal(np.sort(seen), np.flatnonzero(labels >= 0))
    assert not np.array_equal(seen, np.concatenate(list(shuffled(labels, 10, 3, 1))))
    np.testing.assert_array_equal(seen, np.concatenate(list(shuffled(labels, 10, 3, 0))))


@pytest.mark.parametrize("kind", ["pairs", "shuffled"])
def test_a_stream_gives_the_same_batch_wherever_it_begins(kind) -> None:
    labels = labels_of([4, 5, 6, 7, 4, 4])
    whole = Stream(kind, labels, 8, 1)
    batches = [whole.at(step) for step in range(12)]
    assert batches[-1][1].min() > 1, "several epochs"
    for start in (3, 7, 11):
        late = Stream(kind, labels, 8, 1)
        np.testing.assert_array_equal(late.at(start)[0], batches[start][0])
        np.testing.assert_array_equal(late.at(start)[1], batches[start][1])


def test_unlabelled_faces_come_behind_each_batch_and_each_once_before_any_comes_again() -> None:
    labels = np.repeat([0, 1, 2, -1], [4, 5, 6, 10])
    stream, plain = Stream("pairs", labels, 4, 1, unlabelled=5), Stream("pairs", labels, 4, 1)
    batches = [stream.at(step)[0] for step in range(6)]
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(batch[:4], plain.at(step)[0])
        assert (labels[batch[4:]] == -1).all()
        assert len(batch) == 9
    for epoch in (batches[:2], batches[2:4], batches[4:]):
        assert len(set(np.concatenate([batch[4:] for batch in epoch]))) == 10
    # A face that comes again gets other random numbers, whatever epoch the labelled ones are in.
    epochs = [stream.at(step)[1].tolist() for step in range(6)]
    assert [one[4:] for one in epochs] == [[step // 2] * 5 for step in range(6)]
    assert [one[:4] for one in epochs] == [[step // 3] * 4 for step in range(6)]
    np.testing.assert_array_equal(Stream("pairs", labels, 4, 1, unlabelled=5).at(5)[0], batches[5])
    with pytest.raises(UserError, match="the data have 10"):
        Stream("pairs", labels, 4, 1, unlabelled=11)


def test_the_first_batch_of_many_people_comes_at_once() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(20_000), 10))
    began = time.process_time()
    stream = Stream("pairs", labels, 16, 0)
    found = [stream.at(step)[0] for step in (0, 1, 5, 1)]
    assert [len(batch) for batch in found] == [16] * 4
    np.testing.assert_array_equal(found[3], found[1])
    # The whole epoch, 12,500 batches out of so many people, takes a minute.
    assert time.process_time() - began < 10


def test_too_few_people_or_faces() -> None:
    labels = labels_of([2, 2, 2])
    with pytest.raises(UserError, match="3 people have two"):
        next(two_per_identity(labels, 8, 0, 0))
    with pytest.raises(UserError, match="must be even"):
        next(two_per_identity(labels, 3, 0, 0))
    with pytest.raises(UserError, match="lower the batch"):
        shuffled(labels, 7, 0, 0)
