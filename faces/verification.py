"""Face verification and identification: pairs, ten-fold accuracy, ROC, TAR@FAR, EER, rank-1, thresholds.

Protocols: `full` compares full-size crops, `same@p` two faces at p px, `cross@p` a full-size first face with a
second face at p px. Scores are similarities: a higher score means more alike.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from faces.errors import UserError

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
MIN_FALSE_MATCHES = 10
"""A rate needs at least this many expected false matches to be stated."""
MOST_FACES = 4096
"""All pairs are of so many faces at most, which form 8 million: memory grows with their square."""


@dataclass(frozen=True)
class Pairs:
    """P pairs: a, b (P,) indices of faces; same (P,) bool; fold (P,) 0-based."""

    a: np.ndarray
    b: np.ndarray
    same: np.ndarray
    fold: np.ndarray

    @property
    def folds(self) -> int:
        return int(self.fold.max()) + 1


def _known(identities: np.ndarray) -> np.ndarray:
    """Indices of the labelled faces; where they are more than `MOST_FACES`, of people drawn at random."""
    known = np.flatnonzero(identities >= 0)
    if len(known) <= MOST_FACES:
        return known
    people, counts = np.unique(identities[known], return_counts=True)
    kept, left = [], MOST_FACES
    for i in np.random.default_rng(404).permutation(len(people)):
        if counts[i] <= left:
            kept.append(people[i])
            left -= counts[i]
    return known[np.isin(identities[known], kept)]


def make_pairs(identities: np.ndarray, seed: int, most: int = 3000, folds: int = 10) -> Pairs:
    """As many genuine as impostor pairs (at most `most` of each), drawn without repetition, in `folds` folds.

    identities: (N,) int64, unlabelled (-1) faces are left out, and people above `MOST_FACES`. UserError where fewer
    than `folds` genuine pairs or no impostor pair exist.
    """
    rng = np.random.default_rng([seed, 202])
    known = _known(identities)
    first, second = np.triu_indices(len(known), 1)
    same = identities[known[first]] == identities[known[second]]
    genuine, impostor = np.flatnonzero(same), np.flatnonzero(~same)
    count = min(most, len(genuine), len(impostor))
    if count < folds:
        raise UserError(
            f"the test faces form {len(genuine)} genuine and {len(impostor)} impostor pairs; "
            f"{folds} folds need at least {folds} of each: add faces or people"
        )
    chosen = np.concatenate([rng.permutation(genuine)[:count], rng.permutation(impostor)[:count]])
    fold = np.concatenate([np.arange(count) % folds] * 2)
    return Pairs(known[first[chosen]], known[second[chosen]], same[chosen], fold)


def read_pairs(path: Path, keys: tuple[str, ...]) -> Pairs:
    """Fixed pairs from a CSV with columns key_a, key_b, same (0 or 1), fold.

    A key may be the end of a face's key, from a slash on, where only one face's key ends so. UserError where the
    file is missing or malformed, names faces that are not in the set or are ambiguous, or where a threshold
    cannot be fitted: fewer than two folds, no genuine or no impostor pair.
    """
    index: dict[str, int] = {}
    for i, key in enumerate(keys):
        for at, letter in enumerate(key):
            if letter == "/":
                index[key[at + 1 :]] = -1 if key[at + 1 :] in index else i
    index |= {key: i for i, key in enumerate(keys)}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(r["key_a"], r["key_b"], int(r["same"]), int(r["fold"])) for r in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as problem:
        raise UserError(f"{path} is no list of pairs (key_a,key_b,same,fold): {problem!r}") from None
    unknown = list(dict.fromkeys(key for row in rows for key in row[:2] if index.get(key, -1) < 0))
    if unknown:
        raise UserError(f"{path} names {len(unknown)} faces that the test set lacks or has twice, e.g. {unknown[:3]}")
    folds = {row[3] for row in rows}
    if len(folds) < 2 or any({row[2] for row in rows if row[3] != fold} != {0, 1} for fold in folds):
        raise UserError(
            f"{path} must hold genuine (same = 1) and impostor pairs (same = 0) outside each of two folds or more"
        )
    fold = np.unique([row[3] for row in rows], return_inverse=True)[1]
    return Pairs(
        np.array([index[row[0]] for row in rows]),
        np.array([index[row[1]] for row in rows]),
        np.array([row[2] == 1 for row in rows]),
        fold,
    )


def similarity(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    """Score of each row pair of a, b (P, D): cosine in [-1, 1], or minus the Euclidean distance.

    UserError where an embedding is not finite: a comparison with it would count as a rejection.
    """
    _check_finite(a, b)
    if metric == "euclidean":
        return -np.linalg.norm(a - b, axis=1)
    return np.einsum("pd,pd->p", _unit(a), _unit(b))


def similarity_matrix(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    """Scores of every row of a (N, D) with every row of b (M, D): (N, M). UserError as in `similarity`."""
    _check_finite(a, b)
    if metric == "euclidean":
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        return -np.sqrt(np.maximum(squared, 0))
    return _unit(a) @ _unit(b).T


def _check_finite(*embeddings: np.ndarray) -> None:
    if lost := sum(int((~np.isfinite(one)).any(1).sum()) for one in embeddings):
        raise UserError(f"{lost} embeddings are not finite numbers: the network cannot be measured on these faces")


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold (score >= threshold means same) with the highest accuracy; midway between two scores."""
    order = np.argsort(scores)
    sorted_scores, genuine = scores[order], same[order]
    # With the threshold before position i: impostors below it and genuine pairs from it on are right.
    right = np.concatenate([[0], np.cumsum(~genuine)]) + genuine.sum() - np.concatenate([[0], np.cumsum(genuine)])
    below, above = sorted_scores[:-1], sorted_scores[1:]
    middle = below + (above - below) / 2
    # Between two neighbouring floats there is no middle: it must not round down to the lower score.
    middle = np.where(middle > below, middle, above)
    edges = np.concatenate([sorted_scores[:1], middle, np.nextafter(sorted_scores[-1:], np.inf)])
    distinct = np.concatenate([[True], below < above, [True]])
    return float(edges[distinct][np.argmax(right[distinct])])


def correct_by_fold(scores: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(P,) bool: is each pair right at the threshold that is best on the other folds?

    LFW's protocol, but that people may recur in other folds: so do those of `make_pairs`, which makes the accuracy of
    few people a little too good.
    """
    correct = np.zeros(len(scores), dtype=bool)
    for fold in range(pairs.folds):
        held_out = pairs.fold == fold
        threshold = best_threshold(scores[~held_out], pairs.same[~held_out])
        correct[held_out] = (scores[held_out] >= threshold) == pairs.same[held_out]
    return correct


@dataclass(frozen=True)
class AllPairs:
    """scores (P,) of pairs of faces; same (P,) bool; first, second (P,) int32: whose faces they are, from 0."""

    scores: np.ndarray
    same: np.ndarray
    first: np.ndarray
    second: np.ndarray


def all_pairs(first: np.ndarray, second: np.ndarray, identities: np.ndarray, metric: str) -> AllPairs:
    """All pairs of two different labelled faces, of some people above `MOST_FACES`; `first` and `second` (N, D)
    embed the same faces, maybe at two resolutions. Where they differ, (i, j) and (j, i) are two pairs."""
    known = _known(identities)
    scores = similarity_matrix(first[known], second[known], metric)
    people = np.unique(identities[known], return_inverse=True)[1].astype(np.int32)
    chosen = ~np.eye(len(known), dtype=bool) if first is not second else np.triu(np.ones_like(scores, dtype=bool), 1)
    a, b = (np.broadcast_to(side, chosen.shape)[chosen] for side in (people[:, None], people))
    return AllPairs(scores[chosen], a == b, a, b)


@dataclass(frozen=True)
class Roc:
    """Genuine and impostor scores of all pairs of a test set, sorted ascending."""

    genuine: np.ndarray
    impostor: np.ndarray

    @classmethod
    def of(cls, pairs: AllPairs) -> "Roc":
        return cls(np.sort(pairs.scores[pairs.same]), np.sort(pairs.scores[~pairs.same]))

    def threshold_at(self, far: float) -> float | None:
        """Lowest threshold with at most `far` of the impostors accepted; None with too few impostors."""
        # The small summand: .07 x 100 is 7 false matches, though in floating point it is a little more or less.
        accepted = min(int(far * len(self.impostor) + 1e-6), len(self.impostor))
        if accepted < MIN_FALSE_MATCHES:
            return None
        if accepted == len(self.impostor):
            return float(self.impostor[0])
        return float(np.nextafter(self.impostor[len(self.impostor) - accepted - 1], np.inf))

    def tar_at(self, far: float) -> float | None:
        """Share of genuine pairs accepted at that threshold."""
        threshold = self.threshold_at(far)
        return None if threshold is None else float((self.genuine >= threshold).mean())

    def eer(self) -> float:
        """Equal error rate: where the false match rate crosses the false non-match rate, on the straight line
        between the two operating points next to it."""
        thresholds = np.unique(np.concatenate([self.genuine, self.impostor, [np.inf]]))
        fmr = 1 - np.searchsorted(self.impostor, thresholds) / len(self.impostor)
        fnmr = np.searchsorted(self.genuine, thresholds) / len(self.genuine)
        # The lowest threshold accepts all, the last none: the gap falls from 1 to -1.
        gap = fmr - fnmr
        after = int(np.argmax(gap <= 0))
        share = gap[after - 1] / (gap[after - 1] - gap[after])
        return float(fmr[after - 1] + share * (fmr[after] - fmr[after - 1]))

    def curve(self, points: int = 100) -> tuple[list[float], list[float]]:
        """(FMR, TMR) at up to `points` log-spaced false match rates that the impostors can resolve."""
        lowest = max(1 / len(self.impostor), 1e-6)
        rates = np.unique(np.floor(np.geomspace(lowest, 1, points) * len(self.impostor))).astype(int)
        rates = rates[(rates >= 1) & (rates < len(self.impostor))]
        thresholds = self.impostor[len(self.impostor) - rates]
        tmr = 1 - np.searchsorted(self.genuine, thresholds) / len(self.genuine)
        fmr = 1 - np.searchsorted(self.impostor, thresholds) / len(self.impostor)
        return [*fmr.tolist(), 1.0], [*tmr.tolist(), 1.0]


def rank1(first: np.ndarray, second: np.ndarray, identities: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Closed-set identification at rank 1: of each probe (M,) whether the nearest gallery face is the same person's,
    bool, and who it shows.

    Gallery: each person's first face (from `first`); probes: that person's other faces (from `second`).
    """
    known = np.flatnonzero(identities >= 0)
    gallery = known[np.unique(identities[known], return_index=True)[1]]
    probes = np.setdiff1d(known, gallery)
    nearest = similarity_matrix(second[probes], first[gallery], metric).argmax(1)
    return identities[gallery][nearest] == identities[probes], identities[probes]
