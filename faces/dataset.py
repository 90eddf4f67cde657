"""`Faces`: what every other package reads. Loose aligned crops, five landmarks, identity ids."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from faces import archive, store
from faces.errors import UserError
from faces.files import whole

CROP_PX = 128
"""Side of the stored crop: eye distance about 36 px, loose enough to cut every template's crop from it."""
ALONE = "label of an identity with one face"
"""The reason in `Integrity.skipped` for a face in `Faces.alone`."""
REPEATED = "exact duplicate"


@dataclass(frozen=True)
class Integrity:
    """What a source gave: records read, records skipped by reason, keys in which no face was found, and what looks
    wrong with the whole set."""

    read: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def told(self) -> list[str]:
        """A line for each reason of skipping, for the faces that were not found, and for what looks wrong."""
        lines = [f"{count} x {reason}" for reason, count in sorted(self.skipped.items())]
        lines += [f"{len(self.missed)} x no face found"] if self.missed else []
        return [*lines, *self.warnings]


@dataclass(frozen=True)
class Faces:
    """N faces, in memory or decoded when they are asked for.

    images: (N, 128, 128, 3) uint8 RGB, upright, loosely aligned: an array, or what reads like one (`faces.store`).
    landmarks: (N, 5, 2) float32, pixels of that crop: left eye, right eye, nose tip, left and right mouth
        corner as seen in the image; NaN where the detector does not give the point (both eyes always known).
    identities: (N,) int64, index into `names`; -1 = unlabelled.
    names: one name an identity. keys: one unique key a face.
    alone: who is shown by an unlabelled face (its index) whose person the source names and shows only once.
    photos: (N, 16) uint8, a digest of the pixels of each face's photo; None where the photos are not at hand.
    """

    images: np.ndarray
    landmarks: np.ndarray
    identities: np.ndarray
    names: tuple[str, ...]
    keys: tuple[str, ...]
    source: str = ""
    licence: str = ""
    integrity: Integrity = field(default_factory=Integrity)
    alone: dict[int, str] = field(default_factory=dict)
    photos: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> np.ndarray:
        """Indices of the faces whose identity is known, (M,) int64."""
        return np.flatnonzero(self.identities >= 0)

    def state(self) -> str:
        """Changes with the keys, people and landmarks, and with the photos where these are known: the name of what is
        kept of the faces."""
        digest = hashlib.sha256()
        for words in (self.keys, self.names):
            # The name of a file need not be UTF-8.
            digest.update("\0".join((*words, "")).encode(errors="surrogatepass") + b"\1")
        for values in (self.identities, self.landmarks):
            digest.update(np.ascontiguousarray(values).tobytes())
        if self.photos is not None:
            digest.update(self.photos.tobytes())
        return digest.hexdigest()[:16]

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Faces":
        """The faces at `indices`, identities renumbered so that `names` holds those present and no others."""
        indices = np.asarray(indices, dtype=np.int64)
        present = np.unique(self.identities[indices])
        present = present[present >= 0]
        renumber = np.full(len(self.names) + 1, -1, dtype=np.int64)
        renumber[present] = np.arange(len(present))
        alone = {}
        if self.alone:
            alone = {i: self.alone[old] for i, old in enumerate(indices.tolist()) if old in self.alone}
        return replace(
            self,
            images=store.view(self.images, indices),
            landmarks=self.landmarks[indices],
            identities=renumber[self.identities[indices]],
            names=tuple(self.names[i] for i in present),
            keys=tuple(self.keys[i] for i in indices),
            alone=alone,
            photos=None if self.photos is None else self.photos[indices],
        )

    def save(self, path: Path) -> None:
        """Write one .npz file; undecoded images go through memory some at a time."""
        with whole(path) as temporary:
            archive.write(
                temporary,
                images=self.images,
                landmarks=self.landmarks,
                identities=self.identities,
                names=np.array(self.names, dtype=str),
                keys=np.array(self.keys, dtype=str),
                notes=np.array([self.source, self.licence], dtype=str),
                alone=np.array(list(self.alone), dtype=np.int64),
                alone_names=np.array(list(self.alone.values()), dtype=str),
            )

    @classmethod
    def load(cls, path: Path) -> "Faces":
        """What `save` wrote; the images stay in the file until they are looked at."""
        with np.load(path, allow_pickle=False) as file:
            return cls(
                images=archive.mapped(path, "images"),
                landmarks=file["landmarks"],
                identities=file["identities"],
                names=tuple(map(str, file["names"])),
                keys=tuple(map(str, file["keys"])),
                source=str(file["notes"][0]),
                licence=str(file["notes"][1]),
                alone=dict(zip(file["alone"].tolist(), map(str, file["alone_names"]), strict=True)),
            )


def concatenate(parts: Sequence[Faces]) -> Faces:
    """One set from several. A name that occurs in two parts is one identity, also where a part shows that person
    only once, and is told; a photo that occurs in two parts is skipped in the second; a key must be unique."""
    keys = tuple(key for part in parts for key in part.keys)
    if len(set(keys)) < len(keys):
        raise UserError(
            "the same face key occurs in two --data parts: one of them was given twice, or two folders of the same "
            "name hold the same file names; rename one of the folders"
        )
    parts = _without_repeats(parts)
    shown = Counter(name for part in parts for name in (*part.names, *part.names, *part.alone.values()))
    names = tuple(name for name, count in shown.items() if count > 1)
    index = {name: i for i, name in enumerate(names)}
    identities, alone, start = [], {}, 0
    for part in parts:
        known = [index[part.names[i]] if i >= 0 else -1 for i in part.identities]
        for i, name in part.alone.items():
            known[i] = index.get(name, -1)
            if known[i] < 0:
                alone[start + i] = name
        identities.append(np.array(known, dtype=np.int64))
        start += len(part)
    skipped: dict[str, int] = {}
    for part in parts:
        for reason, count in part.integrity.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + count
    skipped.pop(ALONE, None)
    if alone:
        skipped[ALONE] = len(alone)
    warnings = [f"{part.source}: {warning}" for part in parts for warning in part.integrity.warnings]
    if repeats := len(keys) - sum(map(len, parts)):
        warnings.append(f"{repeats} photos occur in several --data parts: each is taken once")
    named = Counter(
        name
        for part in parts
        for name in {*(part.names[i] for i in set(part.identities[part.labelled].tolist())), *part.alone.values()}
    )
    if merged := sum(count > 1 for count in named.values()):
        warnings.append(f"{merged} identity names occur in several --data parts: each counts as one person")
    photos = [part.photos for part in parts if part.photos is not None]
    return Faces(
        images=store.join([part.images for part in parts]),
        landmarks=np.concatenate([part.landmarks for part in parts]),
        identities=np.concatenate(identities),
        names=names,
        keys=tuple(key for part in parts for key in part.keys),
        source=" + ".join(part.source for part in parts),
        licence="; ".join(dict.fromkeys(part.licence for part in parts)),
        integrity=Integrity(
            sum(part.integrity.read for part in parts),
            skipped,
            tuple(key for part in parts for key in part.integrity.missed),
            tuple(warnings),
        ),
        alone=alone,
        photos=np.concatenate(photos) if len(photos) == len(parts) else None,
    )


def told_together(parts: Sequence[Faces], joined: Faces) -> tuple[str, ...]:
    """What `concatenate` found wrong with the parts beside one another."""
    return joined.integrity.warnings[sum(len(part.integrity.warnings) for part in parts) :]


def _without_repeats(parts: Sequence[Faces]) -> list[Faces]:
    """The parts without the photos that an earlier one holds too, pixel by pixel; those are counted, and whoever is
    left with one face is alone."""
    seen, left = set[bytes](), list[Faces]()
    for part in parts:
        if part.photos is not None and len(parts) > 1:
            digests = [row.tobytes() for row in part.photos]
            rows = [i for i, digest in enumerate(digests) if digest not in seen]
            seen.update(digests)
            if len(rows) < len(part):
                part = _with_lone(part.subset(rows), len(part) - len(rows))
        left.append(part)
    return left


def _with_lone(part: Faces, repeats: int) -> Faces:
    lone = np.bincount(part.identities[part.labelled], minlength=len(part.names)) == 1
    alone = {i: part.names[person] for i, person in enumerate(part.identities) if person >= 0 and lone[person]}
    identities = part.identities.copy()
    identities[list(alone)] = -1
    skipped = {**part.integrity.skipped, REPEATED: part.integrity.skipped.get(REPEATED, 0) + repeats}
    integrity = replace(part.integrity, skipped=skipped)
    part = replace(part, identities=identities, alone=part.alone | alone, integrity=integrity)
    return part.subset(np.arange(len(part)))


def split_identities(faces: Faces, test_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Identity-disjoint split: (train indices, test indices), each sorted; unlabelled faces go to training.

    `test_share` of the identities are held out, but at least two, and at least two remain. UserError where fewer
    than four identities are known.
    """
    people = np.unique(faces.identities[faces.labelled])
    if len(people) < 4:
        raise UserError(
            f"{faces.source} holds {len(people)} identit{'y' if len(people) == 1 else 'ies'} with two or more "
            "faces; an identity-disjoint split needs at least 4. Add people to --data, or give a test set with --val"
        )
    count = min(max(2, round(test_share * len(people))), len(people) - 2)
    held_out = np.random.default_rng([seed, 101]).permutation(people)[:count]
    is_test = np.isin(faces.identities, held_out)
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def split_strangers(faces: Faces, test_share: float, seed: int) -> tuple[Faces, Faces, int]:
    """(train, test, left out): `split_identities`, less the training faces that show nearly what a test face does.

    One image under two names would else be learnt from. UserError where fewer than two people are left to learn from.
    """
    train, test = (faces.subset(rows) for rows in split_identities(faces, test_share, seed))
    copies = [index for index, _ in near_twins(train, test)]
    left = train.subset(np.setdiff1d(np.arange(len(train)), copies)) if copies else train
    if len(left.names) < 2:
        raise UserError(
            f"{len(copies)} of {len(train)} training faces show nearly the same image as a test face, which leaves "
            f"{len(left.names)} people to learn from: take the copies out of --data, or accept them "
            "(compress.pipeline: --set data.allow_leaks=true; teachers.finetune: --val or --checks 0)"
        )
    return left, test, len(copies)


def virtual_faces(faces: Faces, count: int, seed: int) -> Faces:
    """`count` unlabelled faces that nobody has: means of two faces of different people.

    The teacher embeds them like any other face, which gives a student targets between the few people it knows. They
    are fewer where most faces are one person's.
    """
    rng = np.random.default_rng([seed, 505])
    pairs = rng.integers(0, len(faces), (4 * count + 16, 2))
    people = faces.identities[pairs]
    different = (people[:, 0] != people[:, 1]) | ((people < 0).any(1) & (pairs[:, 0] != pairs[:, 1]))
    first, second = pairs[different][:count].T
    return replace(
        faces,
        images=store.means(faces.images, first, second),
        landmarks=(faces.landmarks[first] + faces.landmarks[second]) / 2,
        identities=np.full(len(first), -1, dtype=np.int64),
        keys=tuple(f"virtual/{i}" for i in range(len(first))),
        alone={},
        photos=None,
    )


def add_virtual_faces(faces: Faces, count: int, seed: int) -> Faces:
    """`faces` and behind them `count` virtual ones."""
    virtual = virtual_faces(faces, count, seed)
    return replace(
        faces,
        images=store.join([faces.images, virtual.images]),
        landmarks=np.concatenate([faces.landmarks, virtual.landmarks]),
        identities=np.concatenate([faces.identities, virtual.identities]),
        keys=(*faces.keys, *virtual.keys),
    )


def mirrored(faces: Faces) -> Faces:
    """The mirror images, in memory; what was the left eye or mouth corner is the right one."""
    landmarks = faces.landmarks[:, [1, 0, 2, 4, 3]]
    landmarks[..., 0] = faces.images.shape[2] - 1 - landmarks[..., 0]
    return replace(faces, images=np.ascontiguousarray(faces.images[:][:, :, ::-1]), landmarks=landmarks)


def find_leaks(train: Faces, test: Faces, bits: int = 10) -> list[str]:
    """Reasons why `test` is not independent of `train`: shared identity names, near-duplicate images.

    Near-duplicate: the 256-bit difference hashes of two crops differ in at most `bits` bits. A copy that was made
    brighter, noisier or smaller or saved again as JPEG differs in up to 10; two photos of different people differ in
    more than 20, or in 13 where the crops' borders are filled in alike.
    """
    reasons = [f"identity {name!r} is in both sets" for name in shared_people(train, test)]
    twins = near_twins(train, test, bits)
    return reasons + [f"{test.keys[j]} and {train.keys[i]} show nearly the same image" for i, j in twins]


def shared_people(one: Faces, other: Faces) -> list[str]:
    """Names of those who are shown by both, if only once."""
    first, second = ({*faces.names, *faces.alone.values()} for faces in (one, other))
    return sorted(first & second)


def check_strangers(train: Faces, *tests: Faces) -> None:
    """UserError where people of `train` are in a test set by name. Images are not compared: see `find_leaks`."""
    for test in tests:
        if people := shared_people(train, test):
            raise UserError(
                f"{len(people)} people of {test.source}, {', '.join(map(repr, people[:3]))} among them, are in the "
                "training faces too: measured on them, it says nothing of strangers. Take them out of one of the two"
            )


def near_twins(train: Faces, test: Faces, bits: int = 10) -> list[tuple[int, int]]:
    """(index in `train`, index in `test`) of each training face that is a near-duplicate of a test face."""
    train_hashes, test_hashes = _difference_hashes(train.images), _difference_hashes(test.images)
    found: dict[int, int] = {}
    for j, one in enumerate(test_hashes):
        distance = np.bitwise_count(train_hashes ^ one).sum(axis=1)
        found |= dict.fromkeys(np.flatnonzero(distance <= bits).tolist(), j)
    return sorted(found.items())


def _difference_hashes(images: np.ndarray) -> np.ndarray:
    """(N, 4) uint64: where grey rises to the right by more than one level on a 16 x 17 thumbnail.

    That one level keeps flat parts, where noise would decide, at 0.
    """
    import cv2

    hashes = np.zeros((len(images), 32), dtype=np.uint8)
    for i, image in enumerate(images):
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        grey = cv2.resize(grey, (17, 16), interpolation=cv2.INTER_AREA)
        hashes[i] = np.packbits(grey[:, 1:] > grey[:, :-1] + 1)
    return hashes.view(np.uint64)


Progress = Callable[[int], None]
"""Called with the number of items just finished."""
