"""The order of an epoch and its parts: every face once, whoever takes it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faces.partition import epoch_order, global_batches, rank_slice


@given(n=st.integers(0, 500), batch=st.integers(1, 70), world=st.integers(1, 9), epoch=st.integers(0, 99))
def test_all_ranks_together_see_every_face_once(n, batch, world, epoch):
    seen = [
        face
        for rank in range(world)
        for part in global_batches(epoch_order(n, 3, epoch), batch, keep_last=True)
        for face in rank_slice(part, rank, world)
    ]
    assert sorted(seen) == list(range(n))


@given(n=st.integers(0, 500), batch=st.integers(1, 70), world=st.integers(1, 9))
def test_without_keep_last_only_the_incomplete_batch_is_left_out(n, batch, world):
    order = epoch_order(n, 0, 0)
    batches = list(global_batches(order, batch))
    assert all(len(part) == batch for part in batches)
    np.testing.assert_array_equal(np.concatenate([order[:0], *batches]), order[: n // batch * batch])
    for part in batches:
        sizes = [len(rank_slice(part, rank, world)) for rank in range(world)]
        assert sum(sizes) == batch
        assert max(sizes) - min(sizes) <= 1


@given(n=st.integers(30, 500), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_an_order_depends_on_seed_and_epoch_alone(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    np.testing.assert_array_equal(order, epoch_order(n, seed, epoch))
    assert (order != epoch_order(n, seed, epoch + 1)).any()
    assert (order != epoch_order(n, seed + 1, epoch)).any()


def test_one_process_trains_on_the_same_batches_as_four():
    order = epoch_order(100, 0, 0)
    for part in global_batches(order, 16, keep_last=True):
        np.testing.assert_array_equal(np.concatenate([rank_slice(part, rank, 4) for rank in range(4)]), part)


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_that_does_not_exist_is_refused(rank, world):
    with pytest.raises(ValueError, match="is not one of"):
        rank_slice(np.arange(4), rank, world)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one face, not 0"):
        list(global_batches(np.arange(4), 0))
