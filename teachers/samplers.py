"""Which faces a step sees: pure functions of (labels, seed, epoch), so that every process and every resumed run
draws the same batches."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from faces.errors import UserError
from faces.partition import epoch_order, global_batches

Epoch = Iterator[NDArray[np.int64]]
"""Batches of face indices, in order, each drawn when it is asked for."""


def shuffled(labels: NDArray[np.int64], batch: int, seed: int, epoch: int) -> Epoch:
    """Every labelled face once, in batches; a last incomplete batch is left out of the epoch."""
    known = np.flatnonzero(labels >= 0)
    if len(known) < batch:
        raise UserError(f"a batch of {batch} needs as many labelled faces; there are {len(known)}: lower the batch")
    return iter(global_batches(known[epoch_order(len(known), seed, epoch)], batch))


def two_per_identity(labels: NDArray[np.int64], batch: int, seed: int, epoch: int) -> Epoch:
    """The octuplet sampler: each batch holds exactly two images of batch / 2 people, side by side.

    People are drawn without replacement within a batch, in proportion to their images not yet used in this epoch;
    an image is used once an epoch at most. The epoch ends where too few people have two images left. Source:
    Knoche et al. 2023, section 4.1. UserError where fewer than batch / 2 people have two images.
    """
    if batch % 2:
        raise UserError(f"a batch of pairs must be even, not {batch}")
    rng = np.random.default_rng([seed, 12, epoch])
    order = np.argsort(labels, kind="stable")
    _, first = np.unique(labels[order], return_index=True)
    people = [faces for faces in np.split(order, first[1:]) if labels[faces[0]] >= 0]
    images = [rng.permutation(faces) for faces in people]
    left = np.array([len(some) for some in images])
    used = np.zeros(len(people), np.int64)
    if (left >= 2).sum() < batch // 2:
        raise UserError(
            f"{(left >= 2).sum()} people have two or more faces; a batch of {batch} needs {batch // 2}: lower the batch"
        )
    while (left >= 2).sum() >= batch // 2:
        weight = np.where(left >= 2, left, 0)
        chosen = rng.choice(len(people), batch // 2, replace=False, p=weight / weight.sum())
        yield np.concatenate([images[person][used[person] : used[person] + 2] for person in chosen])
        used[chosen] += 2
        left[chosen] -= 2


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
        self._batches = self._from_the_first()
        self._next = 0

    def at(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(face indices, the epoch of each). Quick in rising order; else the batches before it are drawn again."""
        if step < self._next:
            self._batches, self._next = self._from_the_first(), 0
        epoch, known = next(itertools.islice(self._batches, step - self._next, None))
        self._next = step + 1
        nobody, their_epoch = self._nobody(step)
        epochs = np.repeat([epoch, their_epoch], [len(known), len(nobody)])
        return np.concatenate([known, nobody]), epochs

    def _from_the_first(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        for epoch in itertools.count():
            for batch in self._draw(*self._arguments, epoch):
                yield epoch, batch

    def _nobody(self, step: int) -> tuple[NDArray[np.int64], int]:
        if not self._unlabelled:
            return self._unknown[:0], 0
        epoch, place = divmod(step, len(self._unknown) // self._unlabelled)
        order = epoch_order(len(self._unknown), self._arguments[2], epoch)
        return self._unknown[order[place * self._unlabelled : (place + 1) * self._unlabelled]], epoch
