"""`open_faces(spec)`: recognise the layout, read it, check it, align every face."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from faces import align
from faces.dataset import ALONE, CROP_PX, REPEATED, Faces, Integrity, Progress
from faces.errors import UserError
from faces.sources import folder, orl, recordio, shards, verification_bin
from faces.sources.encoded import EncodedImages, Index
from faces.sources.record import Record, aligned_landmarks, check_colour, colour_warning, decode
from faces.store import in_threads

USER_DATA = "the user's own data: its licence was not stated"
LAYOUTS = (
    "`orl`, a folder of identity folders, a webdataset .tar shard or a folder of them, an InsightFace .rec file or "
    "the folder that holds it, or an InsightFace .bin file"
)


class Source(NamedTuple):
    """A recognised source: its reader, a remark on its licence, and the name of its layout."""

    read: Callable[[], Iterator[Record]]
    licence: str
    layout: str


def recognise(spec: str) -> Source:
    """The layout at `spec`: `orl`, `folder` (identity folders), `shards` (.tar), `recordio` (.rec with or without
    .idx) or `bin` (a verification set). UserError where there is none, or more than one in the same folder."""
    if spec == "orl":
        return Source(orl.read, orl.LICENCE, "orl")
    path = spec_path(spec)
    if path.is_file():
        if path.suffix == ".tar":
            return Source(lambda: shards.read(path), USER_DATA, "shards")
        if path.suffix == ".rec":
            return Source(lambda: recordio.read(path), USER_DATA, "recordio")
        if path.suffix == ".bin":
            return Source(lambda: verification_bin.read(path), USER_DATA, "bin")
    # An empty word, as of an unset shell variable, would be the folder that the command runs in.
    if not spec or not path.is_dir():
        raise UserError(f"no face data at {spec!r}: give {LAYOUTS}")
    # Hidden files are left out: a packing that was killed leaves half a shard.
    tars, recs = sorted(path.glob("[!.]*.tar")), sorted(path.glob("[!.]*.rec"))
    if len(recs) > 1 or (recs and tars):
        names = ", ".join(one.name for one in (recs + tars)[:4])
        raise UserError(f"{path} holds several sets ({names}): give one of these files")
    if (packed := recs + tars) and (person := folder.first_person(path)):
        raise UserError(
            f"{path} holds both {packed[0].name} and the identity folder {person.name}: give the file, or keep the "
            "identity folders in a folder of their own"
        )
    if recs:
        return Source(lambda: recordio.read(recs[0]), USER_DATA, "recordio")
    if tars:
        return Source(lambda: (record for tar in tars for record in shards.read(tar)), USER_DATA, "shards")
    return Source(lambda: folder.read(path), USER_DATA, "folder")


def spec_path(spec: str) -> Path:
    """Where the files of a source lie."""
    try:
        return Path(spec).expanduser()
    except RuntimeError:
        # Such a user is not known here: a name that begins with ~.
        return Path(spec)


def open_faces(
    spec: str,
    *,
    detector: str = "dlib",
    aligned: bool = False,
    colour: str = "rgb",
    lazy: bool = False,
    progress: Progress | None = None,
) -> Faces:
    """All usable faces of `spec`, aligned.

    Skipped and counted in `.integrity`: unreadable images, corrupt records, exact duplicates, keys that occurred
    already, stored landmarks without two eyes in the image; of a folder also identities without images, images beside
    the identity folders, files of other kinds, and links that lead nowhere or to a folder.
    Faces that the detector misses are counted and named. An identity left with one face keeps it as
    unlabelled (counted), as it can form no genuine pair. `aligned=True` takes the images as ArcFace crops, as
    those of .rec and .bin files are anyway. `colour="bgr"` is for files that were written with red and blue
    exchanged (the identity folders of QGFace and AdaFace); skin that looks so is told in `.integrity.warnings`.
    `lazy=True` checks everything as well, but keeps where the images lie instead of the images: they are decoded
    on access (`faces.store`), byte-identical.
    UserError: nothing at `spec`, an unknown layout or colour order, or no face left.

    >>> faces = open_faces("orl")
    >>> faces.images.shape[1:], len(faces.names)
    ((128, 128, 3), 40)
    """
    check_colour(colour)
    source = recognise(spec)
    skipped: Counter[str] = Counter()
    missed: list[str] = []
    seen: set[bytes] = set()
    keys: dict[str, None] = {}
    kept = _Kept(colour, lazy)
    read = 0
    for record, image, digest in in_threads(lambda record: _examine(record, colour), source.read()):
        read += 1
        if progress:
            progress(1)
        if record.problem is not None:
            skipped[record.problem] += 1
            continue
        if record.key in keys:
            skipped["key that occurred already"] += 1
            continue
        keys[record.key] = None
        if image is None:
            skipped["unreadable image"] += 1
            continue
        if digest in seen:
            skipped[REPEATED] += 1
            continue
        seen.add(digest)
        if record.landmarks is not None and not _two_eyes(record.landmarks, image):
            skipped["landmarks without two eyes in the image"] += 1
            continue
        landmarks = _landmarks(record, image, detector, aligned)
        if landmarks is None:
            missed.append(record.key)
            continue
        kept.add(record, image, landmarks, digest)
    if source.layout == "folder":
        skipped += folder.left_out(spec_path(spec))
    if not kept.keys:
        raise UserError(
            f"none of the {read} records of {spec} holds a usable face (without a face found: {len(missed)}"
            + "".join(f", {reason}: {count}" for reason, count in skipped.items())
            + ")"
        )
    return _assemble(spec, source.licence, kept, read, skipped, tuple(missed))


def _examine(record: Record, colour: str) -> tuple[Record, np.ndarray | None, bytes]:
    """The record, its image or None, and a digest of the pixels. Runs in the decoding threads."""
    image = None if record.problem is not None else decode(record.data, colour)
    return record, image, b"" if image is None else hashlib.sha256(image.data).digest()


def _two_eyes(landmarks: np.ndarray, image: np.ndarray) -> bool:
    """Are the two eyes known, at least a pixel apart, and in the image?"""
    left, right = landmarks[:2]
    inside = ((landmarks[:2] >= 0) & (landmarks[:2] < image.shape[1::-1])).all()
    return bool(inside and np.hypot(*(right - left)) >= 1)


def _landmarks(record: Record, image: np.ndarray, detector: str, aligned: bool) -> np.ndarray | None:
    if record.landmarks is not None:
        return record.landmarks
    if aligned or record.aligned:
        return aligned_landmarks(image)
    return align.create_detector(detector)(image)


class _Kept:
    """The usable faces so far: their crops, or where these can be had again."""

    def __init__(self, colour: str, lazy: bool) -> None:
        self.keys: list[str] = []
        self.identities: list[str | None] = []
        self.landmarks = array("f")
        self.photos = bytearray()
        self._crops: list[np.ndarray] = []
        self._index = Index(colour) if lazy else None

    def add(self, record: Record, image: np.ndarray, landmarks: np.ndarray, digest: bytes) -> None:
        as_it_is = image.shape[:2] == (CROP_PX, CROP_PX) and record.landmarks is not None
        if self._index is not None:
            self._index.add(record, None if as_it_is else landmarks)
        if not as_it_is:
            image, landmarks = align.loose_crop(image, landmarks)
        if self._index is None:
            self._crops.append(image)
        self.keys.append(record.key)
        self.identities.append(record.identity)
        self.landmarks.extend(landmarks.astype(np.float32).ravel())
        self.photos += digest[:16]

    def images(self) -> np.ndarray:
        return np.stack(self._crops) if self._index is None else cast(np.ndarray, EncodedImages(self._index))


def _assemble(spec: str, licence: str, kept: _Kept, read: int, skipped: Counter[str], missed: tuple[str, ...]) -> Faces:
    counts = Counter(identity for identity in kept.identities if identity is not None)
    names = tuple(name for name, count in counts.items() if count > 1)
    index = {name: i for i, name in enumerate(names)}
    alone = {i: name for i, name in enumerate(kept.identities) if name is not None and name not in index}
    if alone:
        skipped[ALONE] = len(alone)
    images = kept.images()
    warning = colour_warning(images)
    return Faces(
        images=images,
        landmarks=np.array(kept.landmarks, dtype=np.float32).reshape(-1, 5, 2),
        identities=np.array(
            [-1 if identity is None else index.get(identity, -1) for identity in kept.identities], dtype=np.int64
        ),
        names=names,
        keys=tuple(kept.keys),
        source=spec,
        licence=licence,
        integrity=Integrity(read, skipped, missed, () if warning is None else (warning,)),
        alone=alone,
        photos=np.frombuffer(bytes(kept.photos), np.uint8).reshape(-1, 16),
    )
