"""What a reader yields for each face, and how its image is decoded."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

from faces import align
from faces.errors import UserError

# What it warns of is a file that is counted as unreadable: a line each would drown the count.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

COLOURS = ("rgb", "bgr")

_CLEARLY_BLUE = -5.0
"""Median R - B of skin, in levels: 56 to 75 over sets of photos; below that limit in 1 photo of 80."""


class Place(NamedTuple):
    """Where the encoded image lies: `length` bytes at `offset` of a file whose (size, mtime in ns) is `stamp`.

    framed: those bytes are a RecordIO record in several parts, not the image itself.
    """

    file: Path
    stamp: tuple[int, int]
    offset: int
    length: int
    framed: bool = False


@dataclass(frozen=True)
class Record:
    """One face of a source, not yet checked.

    key: unique within the source; data: the encoded image file; identity: name, or None = unlabelled;
    landmarks: (5, 2) in pixels of the image, or None = to be detected; aligned: the image is an ArcFace crop;
    place: where `data` can be read again, or None; problem: why the source could not give the face, else None.
    """

    key: str
    data: bytes
    identity: str | None
    landmarks: np.ndarray | None = None
    aligned: bool = False
    place: Place | None = None
    problem: str | None = None


def stamp(file: BinaryIO) -> tuple[int, int]:
    """(size, time of the last change in ns) of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def decode(data: bytes, colour: str = "rgb") -> np.ndarray | None:
    """RGB uint8 (H, W, 3) of an encoded image, EXIF rotation applied; None where it is no readable image.

    colour: `bgr` where the file was written with red and blue exchanged.
    """
    if not data:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    # OpenCV gives the file's channels in reverse: of a file written in reverse, that is RGB.
    return image if image is None or colour == "bgr" else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def check_colour(colour: str) -> None:
    if colour not in COLOURS:
        raise UserError(f"unknown colour order {colour!r}. Known: {', '.join(COLOURS)}")


def aligned_landmarks(image: np.ndarray) -> np.ndarray:
    """The five points of an already aligned face: the template at the image's height, in the middle of its width.

    So a 112 x 96 px crop, as SphereFace cuts it, has the points of the 112 px one, 8 px further left.
    """
    height, width = image.shape[:2]
    return align.template_landmarks(height) + np.array([(width - height) / 2, 0])


def colour_warning(images: np.ndarray, most: int = 256) -> str | None:
    """'looks like BGR ...' where the skin of `images` (N, 128, 128, 3) is clearly bluer than red, else None.

    Judged by the middle of up to `most` faces spread over the set: the median over the faces of their median
    R - B. Grey images have no say; with fewer than 8 coloured ones nothing is said.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(most, len(images)), dtype=np.int64))
    skin = images[chosen][:, 56:104, 44:84].astype(np.int16)
    difference = skin[..., 0] - skin[..., 2]
    coloured = np.abs(difference).mean(axis=(1, 2)) > 2
    if coloured.sum() < 8:
        return None
    redder = float(np.median(np.median(difference[coloured], axis=(1, 2))))
    if redder > _CLEARLY_BLUE:
        return None
    return (
        f"looks like BGR, skin being {-redder:.0f} levels bluer than red: read it with colour=bgr, or pack it with "
        "python -m faces.shards make --colour bgr"
    )
