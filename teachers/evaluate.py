"""Accuracy of a teacher by resolution, on fixed pairs."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from faces import verification
from faces.dataset import Faces, Progress
from faces.intervals import pair_interval
from faces.verification import Pairs

CROSS_PX = (None, 56, 28, 14, 7)
"""The octuplet paper's resolutions; None = full size."""


class Embedder(Protocol):
    @property
    def metric(self) -> str: ...

    def embed_faces(
        self, faces: Faces, px: int | None = None, batch: int = 64, progress: Progress | None = None
    ) -> NDArray[np.float32]: ...


def protocol_name(px: int | None, cross: bool = True) -> str:
    """`full`, `cross@7`, `same@7`."""
    return "full" if px is None else f"{'cross' if cross else 'same'}@{px}"


def pair_scores(
    teacher: Embedder,
    faces: Faces,
    pairs: Pairs,
    sizes: Sequence[int | None] = CROSS_PX,
    same: bool = False,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Scores (P,) of the pairs by protocol: `cross@p` (the second face at p px of the teacher's own crop, the first
    at full size; octuplet, section 4.2), with `same` also `same@p`. A size embeds only the faces that it needs."""
    found: dict[str, NDArray[np.float32]] = {}
    second, at = np.unique(pairs.b, return_inverse=True)
    every, both = np.unique(np.concatenate([pairs.a, pairs.b]), return_inverse=True)
    in_a, in_b = both[: len(pairs.a)], both[len(pairs.a) :]
    full = teacher.embed_faces(faces.subset(every), None, progress=progress)
    for px in sizes:
        if px is None:
            found["full"] = verification.similarity(full[in_a], full[in_b], teacher.metric)
        elif same:
            low = teacher.embed_faces(faces.subset(every), px, progress=progress)
            found[protocol_name(px)] = verification.similarity(full[in_a], low[in_b], teacher.metric)
            found[protocol_name(px, cross=False)] = verification.similarity(low[in_a], low[in_b], teacher.metric)
        else:
            low = teacher.embed_faces(faces.subset(second), px, progress=progress)
            found[protocol_name(px)] = verification.similarity(full[in_a], low[at], teacher.metric)
    return found


def accuracies(
    scores: dict[str, NDArray[np.float32]], pairs: Pairs, identities: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    """Ten-fold accuracy and its 95% interval by protocol, percent."""
    found = {}
    for name, values in scores.items():
        correct = verification.correct_by_fold(values, pairs)
        low, high = pair_interval(correct, pairs, identities)
        found[name] = {"accuracy": 100 * float(correct.mean()), "low": 100 * low, "high": 100 * high}
    return found


def cross_mean(found: dict[str, dict[str, float]]) -> float:
    """The papers' mean over full size and every `cross@p`."""
    return float(np.mean([one["accuracy"] for name, one in found.items() if not name.startswith("same")]))
