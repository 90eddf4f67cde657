"""The gate: an artifact's embeddings against its model's, on the same faces, through the real runtime."""

import math
from dataclasses import dataclass

import numpy as np

from export.runtimes import Artifact
from export.sidecar import Gate, Parity
from faces import verification
from faces.intervals import pair_interval
from faces.verification import Pairs

TOLERANCE = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.98}
"""Least cosine between the artifact's and the model's embedding of any one face, by precision."""
MOST_LOST = 0.5
"""Percentage points of verification accuracy that an int8 artifact may lose (lower end of the paired interval)."""
GENUINE_WANTED = 3000
"""Genuine pairs from which on the accuracy decides; with fewer its interval says nothing about half a point."""

WANTED_FACES = 256
# Batches that a user will run, none of them a divisor of the next: a graph with a batch size baked in fails
# here. The rest goes through in batches of up to 256.
_BATCHES = (1, 3)
_LARGEST = 256


@dataclass(frozen=True)
class Trial:
    """Faces that the model was not trained on, as it sees them.

    images: (N, p, p, 3) uint8, at least 256; identities: (N,) int64, -1 where a face only counts for the numbers;
    pairs: which of them are compared, or None; protocol and data: as in an accuracy row; filled: so many at the end
    are no unseen people, but fill the trial up.
    """

    images: np.ndarray
    identities: np.ndarray
    pairs: Pairs | None
    protocol: str
    data: str
    filled: int = 0


def run(artifact: Artifact, images: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
    """Embeddings (N, D) of all images, in batches of 1, 3 and up to 256, those that the file takes."""
    engine = artifact.sidecar.engine
    least, _, most = (1, 1, _LARGEST) if engine is None else engine.profile
    cuts = np.cumsum([size for size in _BATCHES if least <= size <= most], dtype=np.int64)
    parts = np.split(np.arange(len(images)), cuts[cuts < len(images)])
    found = [artifact.embed(images[part], _LARGEST, None if alpha is None else alpha[part]) for part in parts]
    return np.concatenate(found)


def judge(found: np.ndarray, reference: np.ndarray, precision: str, metric: str = "cosine") -> Parity:
    """The verdict on two (N, D) arrays of embeddings of the same faces, N >= 1: the artifact's and the model's.

    Passed = the least cosine reaches the tolerance of the precision; where faces are compared by `euclidean` distance,
    1 - |a - b|^2 / 2|b|^2 too, which is the cosine of vectors of one length. `reason` gives what was compared, and
    says where fewer than 256 faces were at hand. Raises ValueError on arrays that do not belong together.
    """
    if found.shape != reference.shape or not len(found):
        raise ValueError(f"embeddings of shape {found.shape}, reference {reference.shape}")
    tolerance, faces = TOLERANCE[precision], len(found)
    few = "" if faces >= WANTED_FACES else f"; only {faces} faces, {WANTED_FACES} wanted"
    a, b = found.astype(np.float64), reference.astype(np.float64)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    usable = np.isfinite(a).all(1) & np.isfinite(b).all(1) & (length > 0)
    if not usable.all():
        reason = f"{faces - usable.sum()} of {faces} embeddings are zero or not finite{few}"
        return Parity(max_abs=None, cosine_min=None, faces=faces, passed=False, reason=reason)
    cosine = least = float(((a * b).sum(1) / length).min())
    word = "least cosine"
    if metric == "euclidean":
        near = float((1 - np.square(a - b).sum(1) / (2 * np.square(b).sum(1))).min())
        if near < tolerance <= cosine:
            least, word = near, f"least cosine {cosine:.7f}, but of other lengths: least 1 - |a - b|^2 / 2|b|^2"
    passed = least >= tolerance
    # Seven digits, as fp32 artifacts differ from their model in the sixth to eighth.
    reason = f"{word} {least:.7f}, {'at least' if passed else 'below'} {tolerance} ({precision}){few}"
    return Parity(max_abs=float(np.abs(a - b).max()), cosine_min=cosine, faces=faces, passed=passed, reason=reason)


def with_accuracy(
    parity: Parity, found: np.ndarray, reference: np.ndarray, trial: Trial, metric: str, precision: str
) -> Parity:
    """`parity` with what the artifact's accuracy says, paired with the model's on the trial's pairs.

    Of an int8 artifact the accuracy decides too, where there are 3,000 genuine pairs: the 95% interval of the
    difference must end above -.5 points. The other precisions only report it.
    """
    pairs = trial.pairs
    if pairs is None or parity.cosine_min is None:
        return parity
    right = [
        verification.correct_by_fold(verification.similarity(rows[pairs.a], rows[pairs.b], metric), pairs)
        for rows in (found, reference)
    ]
    apart = right[0].astype(np.float64) - right[1]
    interval = pair_interval(right[0], pairs, trial.identities)
    low, high = pair_interval(apart, pairs, trial.identities)
    decides = int(pairs.same.sum()) >= GENUINE_WANTED
    gate = Gate(
        protocol=trial.protocol,
        data=trial.data,
        pairs=len(pairs.same),
        accuracy=100 * float(right[0].mean()),
        ci95=(100 * interval[0], 100 * interval[1]),
        model=100 * float(right[1].mean()),
        difference=100 * float(apart.mean()),
        difference_ci95=(100 * low, 100 * high),
        decides=decides,
    )
    reason, passed = parity.reason, parity.passed
    if precision == "int8":
        lost = f"accuracy {gate.difference:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"
        if decides:
            passed = bool(passed) and 100 * low > -MOST_LOST
            reason += f"; {lost}, {'above' if 100 * low > -MOST_LOST else 'not above'} -{MOST_LOST}"
        else:
            reason += f"; {lost}, from {pairs.same.sum()} genuine pairs: {GENUINE_WANTED:,} are needed to decide by it"
    return parity.model_copy(update={"accuracy": gate, "passed": passed, "reason": reason})


def excess(parity: Parity, precision: str) -> float:
    """How far a compared artifact is from its model, in tolerances: above 1 it fails. The larger one of its cosine's
    and, where that decides, its accuracy's; infinite where an embedding is unusable."""
    if parity.cosine_min is None:
        return math.inf
    found = (1 - parity.cosine_min) / (1 - TOLERANCE[precision])
    gate = parity.accuracy
    if precision == "int8" and gate is not None and gate.decides:
        return max(found, -gate.difference_ci95[0] / MOST_LOST)
    return found
