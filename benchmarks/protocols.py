"""The protocols' figures of one embedder. What cannot be opened or aligned is counted and left out."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.embedders import Embedder
from export.crops import loose
from faces import align, verification
from faces.dataset import Faces
from faces.intervals import Interval, pair_interval, rank_interval, roc_intervals
from faces.protocols.types import PairList, Photo, Search, Templates
from faces.sources.record import decode
from faces.verification import MIN_FALSE_MATCHES, AllPairs, Pairs, Roc

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
RANKS = (1, 5, 10)
_CHUNK = 256
Opened = tuple[np.ndarray, np.ndarray]
"""The stored crop (128, 128, 3) and its landmarks (5, 2)."""


class Reader:
    """Opens photos as every other part does; `counts`: images read, missing, unreadable, without a face found."""

    def __init__(self, detector: str, aligned: bool, colour: str = "rgb") -> None:
        self.detector, self.aligned, self.colour = detector, aligned, colour
        self.counts: Counter[str] = Counter()

    def open(self, photo: Photo) -> Opened | None:
        if not photo.path.is_file():
            self.counts["missing"] += 1
            return None
        image = decode(photo.path.read_bytes(), self.colour)
        if image is None:
            self.counts["unreadable"] += 1
            return None
        if photo.landmarks is not None and not self.aligned:
            found: Opened | None = align.loose_crop(image, photo.landmarks)
        else:
            found = loose(image, self.detector, self.aligned)
        self.counts["without a face found" if found is None else "read"] += 1
        return found


def embed(
    photos: Sequence[Photo], reader: Reader, peer: Embedder, sizes: Sequence[int | None]
) -> tuple[np.ndarray, dict[int | None, np.ndarray]]:
    """(usable (N,) bool, embeddings (N, D) by size, zeros where not usable). Photos are opened once."""
    usable = np.zeros(len(photos), dtype=bool)
    parts: dict[int | None, list[tuple[np.ndarray, np.ndarray]]] = {px: [] for px in sizes}
    for start in range(0, len(photos), _CHUNK):
        opened = [reader.open(photo) for photo in photos[start : start + _CHUNK]]
        at = np.array([start + i for i, one in enumerate(opened) if one is not None], dtype=np.int64)
        if not len(at):
            continue
        usable[at] = True
        kept = [one for one in opened if one is not None]
        faces = Faces(
            images=np.stack([image for image, _ in kept]),
            landmarks=np.stack([points for _, points in kept]).astype(np.float32),
            identities=np.full(len(kept), -1, dtype=np.int64),
            names=(),
            keys=tuple(map(str, at)),
        )
        for px in sizes:
            parts[px].append((at, peer.run(peer.crops(faces, px))))
    found = {}
    for px, some in parts.items():
        width = some[0][1].shape[1] if some else 1
        found[px] = np.zeros((len(photos), width), dtype=np.float32)
        for at, rows in some:
            found[px][at] = rows
    return usable, found


def verify(listed: PairList, reader: Reader, peer: Embedder, sizes: Sequence[int | None]) -> dict[str, Any]:
    """Ten-fold accuracy with its interval at `full`, and `same@p` and `cross@p` for each of `sizes`."""
    usable, rows = embed(listed.photos, reader, peer, list(dict.fromkeys((None, *sizes))))
    kept = [pair for pair in listed.pairs if usable[pair[0]] and usable[pair[1]]]
    found = _counted(reader, len(listed.pairs), len(kept), "pairs")
    folds = {fold for *_, fold in kept}
    if len(folds) < 2 or len({same for _, _, same, _ in kept}) < 2:
        return found | {"figures": {}, "reason": "too few pairs are left for a threshold from other folds"}
    a, b, same, fold = (np.array(column) for column in zip(*kept, strict=True))
    pairs = Pairs(a, b, same.astype(bool), np.unique(fold, return_inverse=True)[1])
    views: dict[str, tuple[int | None, int | None]] = {"full": (None, None)}
    for px in (px for px in sizes if px is not None):
        views |= {f"same@{px}": (px, px), f"cross@{px}": (None, px)}
    people = np.unique(listed.people, return_inverse=True)[1]
    figures = {}
    for name, (first, second) in views.items():
        scores = verification.similarity(rows[first][a], rows[second][b], peer.metric)
        right = verification.correct_by_fold(scores, pairs)
        low, high = pair_interval(right, pairs, people)
        figures[name] = _figure(float(right.mean()), (low, high))
    return found | {"figures": figures}


def search(test: Search, reader: Reader, peer: Embedder, closed_set: bool = False) -> dict[str, Any]:
    """Rank-1, -5 and -10: is one of the k nearest gallery *people* (distractors are people of their own) the probe's?
    closed_set: a person is the mean of their known embeddings; figures are top-1 and top-5.

    A probe that cannot be opened is counted and, as it finds nobody, wrong."""
    photos = [photo for photo, _ in test.gallery] + list(test.distractors) + [photo for photo, _ in test.probes]
    usable, every = embed(photos, reader, peer, (None,))
    rows, people = every[None], [person for _, person in test.gallery]
    people += [f"distractor {i}" for i in range(len(test.distractors))]
    count = len(people)
    known, asked = np.flatnonzero(usable[:count]), np.flatnonzero(usable[count:])
    found = _counted(reader, len(test.probes), len(asked), "probes")
    if not len(known) or not len(test.probes):
        return found | {"figures": {}, "reason": "no gallery image is left" if not len(known) else "there is no probe"}
    names, owner = np.unique([people[i] for i in known], return_inverse=True)
    gallery = rows[known]
    if closed_set:
        gallery = np.stack([_mean(gallery[owner == i]) for i in range(len(names))])
        owner = np.arange(len(names))
    wanted = np.array([person for _, person in test.probes])[asked]
    ranks = _ranks(rows[count:][asked], gallery, owner, names, wanted, peer.metric)
    figures = _at_ranks(ranks, asked, [person for _, person in test.probes], closed_set)
    return found | {"figures": figures, "gallery": len(names), "gallery_images_left_out": count - len(known)}


def _at_ranks(ranks: np.ndarray, asked: np.ndarray, people: Sequence[str], closed_set: bool = False) -> dict[str, Any]:
    """Shares of all probes, which show `people`, that are found within the first k; ranks: of those `asked` for."""
    word, wants = ("top", RANKS[:2]) if closed_set else ("rank", RANKS)
    figures = {}
    for k in wants:
        right = np.zeros(len(people), dtype=bool)
        right[asked] = ranks <= k
        figures[f"{word}-{k}"] = _figure(float(right.mean()), rank_interval(right, np.array(people)))
    return figures


def _figure(share: float, interval: Interval | None) -> dict[str, float]:
    ends = {} if interval is None else {"low": 100 * interval[0], "high": 100 * interval[1]}
    return {"value": 100 * share, **ends}


def _ranks(
    probes: np.ndarray, gallery: np.ndarray, owner: np.ndarray, names: np.ndarray, wanted: np.ndarray, metric: str
) -> np.ndarray:
    """(N,) 1-based rank of each probe's person among all people, by their nearest image; a large number where the
    gallery lacks them."""
    ranks = np.full(len(probes), np.iinfo(np.int64).max)
    index = {name: i for i, name in enumerate(names)}
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(len(names)))
    for start in range(0, len(probes), _CHUNK):
        scores = verification.similarity_matrix(probes[start : start + _CHUNK], gallery, metric)
        best = np.maximum.reduceat(scores[:, order], starts, axis=1)
        for i, row in enumerate(best):
            person = index.get(wanted[start + i])
            if person is not None:
                # Ties count against the probe.
                ranks[start + i] = int((row >= row[person]).sum())
    return ranks


def templates(test: Templates, reader: Reader, peer: Embedder) -> dict[str, Any]:
    """TAR at each of `FARS` (null below ten expected false matches) and rank-1, -5, -10 of 1:N where it has one.

    A template is the mean over its media of the mean over each medium's images, all of length 1; a template without a
    usable image is counted, its comparisons are left out, and as a probe of 1:N it is wrong."""
    usable, every = embed([one.photo for one in test.members], reader, peer, (None,))
    media: dict[str, dict[str, list[int]]] = {}
    for i, one in enumerate(test.members):
        if usable[i]:
            media.setdefault(one.template, {}).setdefault(one.medium, []).append(i)
    means = {name: _mean(np.stack([_mean(every[None][at]) for at in of.values()])) for name, of in media.items()}
    names = {one.template for one in test.members}
    found = _counted(reader, len(names), len(means), "templates")
    figures: dict[str, Any] = {}
    kept = [pair for pair in test.compared if pair[0] in means and pair[1] in means]
    if kept:
        scores = np.concatenate(
            [
                verification.similarity(
                    np.stack([means[a] for a, _, _ in part]), np.stack([means[b] for _, b, _ in part]), peer.metric
                )
                for part in (kept[i : i + 100_000] for i in range(0, len(kept), 100_000))
            ]
        )
        same = np.array([one for _, _, one in kept])
        pairs = AllPairs(scores, same, *_owners([pair[:2] for pair in kept], same))
        roc = Roc.of(pairs)
        # Without an impostor no rate is stated either, and there is nothing to draw.
        intervals = roc_intervals(pairs, FARS).tar if len(roc.genuine) and len(roc.impostor) else {}
        for far in FARS if len(roc.genuine) else ():
            tar, interval = roc.tar_at(far), intervals.get(far)
            few = f"{far * len(roc.impostor):.2g} false matches expected, {MIN_FALSE_MATCHES} are needed"
            figures[f"TAR@{far:.0e}"] = {"value": None, "reason": few} if tar is None else _figure(tar, interval)
    if test.probes:
        gallery = [name for name in test.gallery if name in means]
        asked = np.array([i for i, name in enumerate(test.probes) if name in means], dtype=np.int64)
        if gallery and len(asked):
            people, owner = np.unique([test.subjects[name] for name in gallery], return_inverse=True)
            searched = [test.subjects[name] for name in test.probes]
            probes = _stack(means, (test.probes[i] for i in asked))
            wanted = np.array(searched)[asked]
            ranks = _ranks(probes, _stack(means, gallery), owner, people, wanted, peer.metric)
            figures |= _at_ranks(ranks, asked, searched)
    return found | {"figures": figures, "compared": len(kept), "comparisons_left_out": len(test.compared) - len(kept)}


def _owners(compared: Sequence[tuple[str, str]], same: np.ndarray) -> np.ndarray:
    """(2, P) int32: whose templates they are. Whom a template shows stands in other lists, which may be missing: people
    are what the genuine pairs connect."""
    names, at = np.unique(compared, return_inverse=True)
    first, second = at.reshape(-1, 2).T
    genuine = coo_array((np.ones(int(same.sum())), (first[same], second[same])), shape=(len(names), len(names)))
    owner = connected_components(genuine, directed=False)[1].astype(np.int32)
    return np.stack([owner[first], owner[second]])


def _stack(means: dict[str, np.ndarray], names: Iterable[str]) -> np.ndarray:
    return np.stack([means[name] for name in names])


def _mean(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    mean = unit.mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def _counted(reader: Reader, all_: int, kept: int, what: str) -> dict[str, Any]:
    return {what: all_, f"{what}_used": kept, "images": dict(reader.counts)}


Evaluate = Callable[[Reader, Embedder, Sequence[int | None]], dict[str, Any]]
