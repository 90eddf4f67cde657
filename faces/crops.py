"""Training crops of many faces: cut once, in the background, into a memory-mapped file that is read meanwhile."""

import os
import threading
import weakref
from pathlib import Path

import numpy as np

from faces.align import crop
from faces.dataset import Faces
from faces.errors import UserError

_CHUNK = 256


class CropStore:
    """(N, side, side, 3) uint8 crops of `faces` by the ArcFace template with `margin`, in the order of `order`.

    Row r holds face `order[r]`, so who reads the rows one after the other sees the faces in that order, and can do
    so while later rows are still being decoded and cut. What lies in memory is the system's file cache, which it
    takes back when it needs to: no more than one chunk of decoded images is held. The file is a scratch file
    without a name: nothing is left of it, whatever ends the process.

    >>> crops = CropStore(faces, 48, 0.125, order, folder).rows(np.arange(256))
    """

    def __init__(self, faces: Faces, side: int, margin: float, order: np.ndarray, folder: Path) -> None:
        self.order = order
        self._ready = 0
        self._problem: Exception | None = None
        self._changed = threading.Condition()
        folder.mkdir(parents=True, exist_ok=True)
        shape = (len(order), side, side, 3)
        path = folder / f".crops-{os.getpid()}-{id(self)}"
        with path.open("w+b") as file:
            path.unlink()
            # Room is taken at once, so a full disk is told here and not by a bus error later.
            if hasattr(os, "posix_fallocate"):
                _allocate(file.fileno(), int(np.prod(shape)), folder)
            self._map = np.memmap(file, np.uint8, "r+", shape=shape)
        # It knows the store by a weak reference: once nobody reads, nothing more is cut.
        threading.Thread(target=_fill, args=(weakref.ref(self), faces, side, margin, order)).start()

    def __len__(self) -> int:
        return len(self.order)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._map.shape

    @property
    def ready(self) -> int:
        """How many rows can be read at once."""
        return self._ready

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """(M, side, side, 3) uint8: waits until they are cut. What went wrong in cutting is raised here."""
        with self._changed:
            self._changed.wait_for(lambda: self._problem is not None or self._ready > rows.max(initial=-1))
        if self._problem is not None:
            raise self._problem
        return self._map[rows]

    def _put(self, start: int, found: np.ndarray | Exception) -> None:
        """Rows from `start` on, or what went wrong in cutting them."""
        if isinstance(found, np.ndarray):
            self._map[start : start + len(found)] = found
        with self._changed:
            if isinstance(found, np.ndarray):
                self._ready = start + len(found)
            else:
                self._problem = found
            self._changed.notify_all()


def _fill(
    wanted: "weakref.ReferenceType[CropStore]", faces: Faces, side: int, margin: float, order: np.ndarray
) -> None:
    for start in range(0, len(order), _CHUNK):
        rows = order[start : start + _CHUNK]
        found: np.ndarray | Exception
        try:
            found = crop(faces.images[rows], faces.landmarks[rows], "arcface", side, margin)
        except Exception as problem:
            found = problem
        store = wanted()
        # An interpreter that ends waits for this thread: it must not cut faces that nobody will see.
        if store is None or not threading.main_thread().is_alive():
            return
        store._put(start, found)
        if isinstance(found, Exception):
            return
        del store


def _allocate(handle: int, size: int, folder: Path) -> None:
    try:
        os.posix_fallocate(handle, 0, max(1, size))
    except OSError as problem:
        raise UserError(
            f"{folder} has no room for {size / 1e9:.1f} GB of training crops ({problem.strerror}); free some, or put "
            "--out on another disk"
        ) from None
