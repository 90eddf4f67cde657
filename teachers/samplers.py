"""Which faces a step sees: pure functions of (labels, seed, epoch), so that every process and every resumed run
draws the same batches."""

import numpy as np
from numpy.typing import NDArray

from faces.errors import UserError
from faces.partition import epoch_order, global_batches

Epoch = list[NDArray[np.int64]]
"""Batches of face indices, in order."""


def shuffled(labels: NDArray[np.int64], batch: int, seed: int, epoch: int) -> Epoch:
    """Every labelled face once, in batches; a last incomplete batch is left out of the epoch."""
    known = np.flatnonzero(labels >= 0)
    if len(known) < batch:
        raise UserError(f"a batch of {batch} needs as many labelled faces; there are {len(known)}: lower the batch")
    return list(global_batches(known[epoch_order(len(known), seed, epoch)], batch))


def two_per_identity(labels: NDArray[np.int64], batch: int, seed: int, epoch: int) -> Epoch:
    """The octuplet sampler: each batch holds exactly two images of batch / 2 people, side by side.

    People are drawn without replacement within a batch, in proportion to their images not yet used in this epoch;
    an image is used once an epoch at most. The epoch ends where too few people have two images left. Source:
    Knoche et al. 2023, section 4.1. UserError where fewer than batch / 2 people have two images.
    """
    if batch % 2:
        raise UserError(f"a batch of pairs must be even, not {batch}")
    rng = np.random.default_rng([seed, 12, epoch])
    people = np.unique(labels[labels >= 0])
    images = [rng.permutation(np.flatnonzero(labels == person)) for person in people]
    left = np.array([len(some) for some in images])
    used = np.zeros(len(people), np.int64)
    if (left >= 2).sum() < batch // 2:
        raise UserError(
            f"{(left >= 2).sum()} people have two or more faces; a batch of {batch} needs {batch // 2}: lower the batch"
        )
    batches: Epoch = []
    while (left >= 2).sum() >= batch // 2:
        weight = np.where(left >= 2, left, 0)
        chosen = rng.choice(len(people), batch // 2, replace=False, p=weight / weight.sum())
        batches.append(np.concatenate([images[person][used[person] : used[person] + 2] for person in chosen]))
        used[chosen] += 2
        left[chosen] -= 2
    return batches


SAMPLERS = {"shuffled": shuffled, "pairs": two_per_identity}


class Stream:
    """Batch `step` of an endless stream of epochs, and behind it so many `unlabelled` faces, in epochs of their own.

    UserError where there are fewer unlabelled faces than that.
    """

    def __init__(self, kind: str, labels: NDArray[np.int64], batch: int, seed: int, unlabelled: int = 0) -> None:
        self._draw, self._arguments = SAMPLERS[kind], (labels, batch, seed)
        self._unlabelled, self._unknown = unlabelled, np.flatnonzero(labels < 0)
        if unlabelled > len(self._unknown):
            raise UserError(
                f"{unlabelled} unlabelled faces a step were asked for and the data have {len(self._unknown)}: give "
                "faces without identity too, or set unlabelled=0"
            )
        self._starts, self._epoch, self._batches = [0], -1, Epoch()

    def at(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(face indices, the epoch of each). Steps are asked for in rising order, or from anywhere after a resume."""
        epoch = next((i for i in range(len(self._starts) - 1) if step < self._starts[i + 1]), len(self._starts) - 1)
        while True:
            if epoch != self._epoch:
                self._epoch, self._batches = epoch, self._draw(*self._arguments, epoch)
                if epoch + 1 == len(self._starts):
                    self._starts.append(self._starts[-1] + len(self._batches))
            if step < self._starts[epoch + 1]:
                known = self._batches[step - self._starts[epoch]]
                nobody, their_epoch = self._nobody(step)
                epochs = np.repeat([epoch, their_epoch], [len(known), len(nobody)])
                return np.concatenate([known, nobody]), epochs
            epoch += 1

    def _nobody(self, step: int) -> tuple[NDArray[np.int64], int]:
        if not self._unlabelled:
            return self._unknown[:0], 0
        epoch, place = divmod(step, len(self._unknown) // self._unlabelled)
        order = epoch_order(len(self._unknown), self._arguments[2], epoch)
        return self._unknown[order[place * self._unlabelled : (place + 1) * self._unlabelled]], epoch
