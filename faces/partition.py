"""Who trains on which face: an epoch's order and each process's share of it. Pure functions of their arguments.

Every process computes the same order and takes its own part of each global batch, so nothing is exchanged.
"""

from collections.abc import Iterator

import numpy as np


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) int64: a permutation of 0 .. n - 1, another one each epoch; the same for the same arguments."""
    return np.random.default_rng([seed, 707, epoch]).permutation(n)


def global_batches(order: np.ndarray, batch: int, keep_last: bool = False) -> Iterator[np.ndarray]:
    """`order` (n,) in global batches of `batch` indices.

    The last `n % batch` indices are left out of this epoch (another epoch's order leaves out others), unless
    `keep_last` gives them as a smaller batch. Nothing is padded: no face comes twice in an epoch. ValueError for
    a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"a batch holds at least one face, not {batch}")
    end = len(order) if keep_last else len(order) - len(order) % batch
    for start in range(0, end, batch):
        yield order[start : start + batch]


def rank_slice(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The part of a global batch (m,) that process `rank` of `world` takes; all parts together are the batch.

    Contiguous; where `world` does not divide m, parts differ by one face, and a rank has none where m < world.
    ValueError for a rank that is not one of 0 .. world - 1.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not one of {world} processes")
    return batch[len(batch) * rank // world : len(batch) * (rank + 1) // world]
