"""Image files that are decoded when they are asked for: what `open_faces(lazy=True)` keeps instead of images.

Per face 33 bytes, 80 more where its landmarks are its own, and for identity folders its path and the file's state.
What they give is byte-identical to the images that `open_faces` holds in memory otherwise.
"""

import os
from array import array
from typing import Any, cast

import numpy as np

from faces import align
from faces.dataset import CROP_PX
from faces.errors import UserError
from faces.sources.record import Record, decode, stamp
from faces.sources.recordio import unframe
from faces.store import LazyImages, in_threads


class EncodedImages(LazyImages):
    """Image files, by (file, offset, length), and how each becomes the stored crop. Made by `Index`.

    UserError where a file is not as it was when it was indexed.
    """

    def __init__(self, index: "Index") -> None:
        super().__init__(len(index.offset), (CROP_PX, CROP_PX, 3))
        self._colour = index.colour
        self._files = tuple(index.files)
        self._stamps = np.array(index.stamps, dtype=np.int64).reshape(-1, 2)
        self._blobs = tuple(index.blobs)
        self._file = np.frombuffer(index.file, np.int32)
        self._offset = np.frombuffer(index.offset, np.int64)
        self._length = np.frombuffer(index.length, np.int64)
        self._framed = np.frombuffer(index.framed, np.bool_)
        self._transform = np.frombuffer(index.transform, np.int32)
        self._landmarks = np.frombuffer(index.landmarks, np.float64).reshape(-1, 5, 2)

    @property
    def nbytes(self) -> int:
        """Bytes of the index, encoded images that are held in memory included."""
        arrays = (self._rows, self._stamps, self._file, self._offset, self._length, self._framed, self._transform)
        # 49 and 33 bytes: the headers of Python's str and bytes; 8: their places in the tuples.
        text = sum(len(file) + 49 + 8 for file in self._files) + sum(len(blob) + 33 + 8 for blob in self._blobs)
        return sum(one.nbytes for one in arrays) + self._landmarks.nbytes + text

    def _read(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), CROP_PX, CROP_PX, 3), dtype=np.uint8)
        if len(rows) == 1:
            images[0] = self._image(rows[0])
        else:
            for i, image in enumerate(in_threads(self._image, rows)):
                images[i] = image
        return images

    def _image(self, row: np.integer) -> np.ndarray:
        image = decode(self._bytes(row), self._colour)
        if image is None:
            raise UserError(f"{self._files[self._file[row]]} changed since it was indexed: open the faces again")
        if self._transform[row] < 0:
            return image
        return align.loose_crop(image, self._landmarks[self._transform[row]])[0]

    def _bytes(self, row: np.integer) -> bytes:
        if self._file[row] < 0:
            return self._blobs[self._offset[row]]
        name, known = self._files[self._file[row]], tuple(self._stamps[self._file[row]])
        try:
            with open(name, "rb", buffering=0) as file:
                if stamp(cast(Any, file)) != known:
                    raise UserError(f"{name} changed since it was indexed: open the faces again")
                data = os.pread(file.fileno(), int(self._length[row]), int(self._offset[row]))
        except FileNotFoundError:
            raise UserError(f"{name} is gone since it was indexed: open the faces again") from None
        return unframe(data) if self._framed[row] else data


class Index:
    """Collects the places of faces for `EncodedImages`."""

    def __init__(self, colour: str) -> None:
        self.colour = colour
        self.files: dict[str, int] = {}
        self.stamps: list[tuple[int, int]] = []
        self.blobs: list[bytes] = []
        self.file, self.offset, self.length = array("i"), array("q"), array("q")
        self.framed, self.transform = array("b"), array("i")
        self.landmarks = array("d")
        self._known: dict[bytes, int] = {}

    def add(self, record: Record, landmarks: np.ndarray | None) -> None:
        """A face whose stored crop is cut by `landmarks` (5, 2), or is the image itself (None).

        The bytes of a record without a place (.bin files, compressed archives) are kept in memory.
        """
        place = record.place
        if place is None:
            where = (-1, len(self.blobs), len(record.data), False)
            self.blobs.append(record.data)
        else:
            name = os.path.abspath(place.file)
            number = self.files.setdefault(name, len(self.files))
            if number == len(self.stamps):
                self.stamps.append(place.stamp)
            elif self.stamps[number] != place.stamp:
                raise UserError(f"{name} changed while it was read: open the faces again")
            where = (number, place.offset, place.length, place.framed)
        for column, value in zip((self.file, self.offset, self.length, self.framed), where, strict=True):
            column.append(value)
        self.transform.append(-1 if landmarks is None else self._number(landmarks))

    def _number(self, landmarks: np.ndarray) -> int:
        # All crops of an aligned set share theirs.
        points = np.ascontiguousarray(landmarks, dtype=np.float64)
        number = self._known.setdefault(points.tobytes(), len(self._known))
        if number == len(self.landmarks) // 10:
            self.landmarks.extend(points.ravel())
        return number
