"""`open_faces(spec)`: recognise the layout, read it, check it, align every face."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from faces import align
from faces.dataset import CROP_PX, Faces, Integrity, Progress
from faces.errors import UserError
from faces.sources import folder, orl, shards
from faces.sources.record import Record, decode

USER_DATA = "the user's own data: its licence was not stated"


def recognise(spec: str) -> tuple[Callable[[], Iterator[Record]], str]:
    """(reader, licence remark) of `orl`, an identity folder, a `.tar` shard or a folder of shards."""
    if spec == "orl":
        return orl.read, orl.LICENCE
    path = Path(spec).expanduser()
    if path.suffix == ".tar" and path.is_file():
        return lambda: shards.read(path), USER_DATA
    if not path.is_dir():
        raise UserError(f"no face data at {spec!r}: give `orl`, a folder of identity folders, or a .tar shard")
    tars = sorted(path.glob("*.tar"))
    if tars:
        return lambda: (record for tar in tars for record in shards.read(tar)), USER_DATA
    return lambda: folder.read(path), USER_DATA


def open_faces(spec: str, *, detector: str = "dlib", aligned: bool = False, progress: Progress | None = None) -> Faces:
    """All usable faces of `spec`, aligned.

    Skipped and counted in `.integrity`: unreadable images, exact duplicates, keys that occurred already,
    stored landmarks without two eyes in the image, identities without images.
    Faces that the detector misses are counted and named. An identity left with one face keeps it as
    unlabelled (counted), as it can form no genuine pair. `aligned=True` takes the images as ArcFace crops.
    UserError: nothing at `spec`, an unknown layout, or no face left.

    >>> faces = open_faces("orl")
    >>> faces.images.shape[1:], len(faces.names)
    ((128, 128, 3), 40)
    """
    reader, licence = recognise(spec)
    skipped: Counter[str] = Counter()
    missed: list[str] = []
    seen: set[bytes] = set()
    keys: set[str] = set()
    kept: list[tuple[Record, np.ndarray, np.ndarray]] = []
    read = 0
    for record in reader():
        read += 1
        if progress:
            progress(1)
        if record.key in keys:
            skipped["key that occurred already"] += 1
            continue
        keys.add(record.key)
        image = decode(record.data)
        if image is None:
            skipped["unreadable image"] += 1
            continue
        digest = hashlib.sha256(image.tobytes()).digest()
        if digest in seen:
            skipped["exact duplicate"] += 1
            continue
        seen.add(digest)
        if record.landmarks is not None and not _two_eyes(record.landmarks, image):
            skipped["landmarks without two eyes in the image"] += 1
            continue
        landmarks = _landmarks(record, image, detector, aligned)
        if landmarks is None:
            missed.append(record.key)
            continue
        if image.shape[:2] != (CROP_PX, CROP_PX) or record.landmarks is None:
            image, landmarks = align.loose_crop(image, landmarks)
        kept.append((record, image, landmarks.astype(np.float32)))
    if spec != "orl" and Path(spec).is_dir() and (empty := folder.empty_identities(Path(spec))):
        skipped["identity folder without images"] += empty
    if not kept:
        raise UserError(
            f"none of the {read} records of {spec} holds a usable face (without a face found: {len(missed)}"
            + "".join(f", {reason}: {count}" for reason, count in skipped.items())
            + ")"
        )
    return _assemble(spec, licence, kept, Integrity(read, skipped, tuple(missed)))


def _two_eyes(landmarks: np.ndarray, image: np.ndarray) -> bool:
    """Are the two eyes known, at least a pixel apart, and in the image?"""
    left, right = landmarks[:2]
    inside = ((landmarks[:2] >= 0) & (landmarks[:2] < image.shape[1::-1])).all()
    return bool(inside and np.hypot(*(right - left)) >= 1)


def _landmarks(record: Record, image: np.ndarray, detector: str, aligned: bool) -> np.ndarray | None:
    if record.landmarks is not None:
        return record.landmarks
    if aligned:
        return align.template_landmarks(min(image.shape[:2]))
    return align.create_detector(detector)(image)


def _assemble(
    spec: str, licence: str, kept: list[tuple[Record, np.ndarray, np.ndarray]], integrity: Integrity
) -> Faces:
    counts = Counter(record.identity for record, _, _ in kept if record.identity is not None)
    names = tuple(name for name, count in counts.items() if count > 1)
    index = {name: i for i, name in enumerate(names)}
    if single := len(counts) - len(names):
        integrity.skipped["label of an identity with one face"] = single
    return Faces(
        images=np.stack([image for _, image, _ in kept]),
        landmarks=np.stack([landmarks for _, _, landmarks in kept]),
        identities=np.array(
            [-1 if record.identity is None else index.get(record.identity, -1) for record, _, _ in kept],
            dtype=np.int64,
        ),
        names=names,
        keys=tuple(record.key for record, _, _ in kept),
        source=spec,
        licence=licence,
        integrity=integrity,
    )
