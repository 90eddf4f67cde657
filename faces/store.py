"""Images that are decoded when they are asked for: a set of any size in some tens of bytes a face.

They read like an array (N, H, W, 3) uint8: `len`, `shape`, `dtype`, iteration, and row indices of every kind that
numpy takes. `faces.sources.encoded` holds the stores of image files.
"""

import copy
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar, cast

import numpy as np

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_CHUNK = 64


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    # One a process: a fork does not carry the threads over. OpenCV decodes without holding Python's lock.
    return ThreadPoolExecutor(workers(), thread_name_prefix="faces-decode")


def workers() -> int:
    """Threads that decode: one a usable core, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`map` in the decoding threads, in order, few items ahead. The items are drawn in the caller's thread."""
    pool, waiting = _pool(os.getpid()), deque[Future[_Result]]()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > 4 * workers():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class LazyImages(ABC):
    """Rows of a store of images of one shape (H, W, 3); `view` gives others of them without copying any image."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, count: int, image_shape: tuple[int, ...]) -> None:
        self._rows = np.arange(count)
        self._image_shape = image_shape

    @abstractmethod
    def _read(self, rows: np.ndarray) -> np.ndarray:
        """(M, H, W, 3) uint8 of the store's own `rows` (M,)."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self._image_shape

    def view(self, indices: Sequence[int] | np.ndarray) -> "LazyImages":
        """The images at `indices`, in that order, undecoded."""
        other = copy.copy(self)
        other._rows = self._rows[indices]
        return other

    def __getitem__(self, key: Any) -> np.ndarray:
        """One image (H, W, 3), or those of a slice, an index array or a mask. IndexError for anything else."""
        rows = self._rows[key]
        if rows.ndim > 1:
            raise IndexError("only rows of undecoded images can be taken: index what they give")
        return self._read(np.atleast_1d(rows)) if rows.ndim else self._read(rows[None])[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images in memory, 49 kB each."""
        return self[:] if dtype is None else self[:].astype(dtype)


class JoinedImages(LazyImages):
    """The rows of several stores or arrays, one behind the other."""

    def __init__(self, parts: Sequence["np.ndarray | LazyImages"]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        super().__init__(int(self._ends[-1]), parts[0].shape[1:])

    def _read(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self._image_shape), dtype=np.uint8)
        which = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(which):
            mine = which == number
            part = self._parts[number]
            images[mine] = part[rows[mine] - (self._ends[number] - len(part))]
        return images


class MeanImages(LazyImages):
    """Image i is the mean of images `first[i]` and `second[i]`, halves rounded up."""

    def __init__(self, images: "np.ndarray | LazyImages", first: np.ndarray, second: np.ndarray) -> None:
        self._images, self._first, self._second = images, first, second
        super().__init__(len(first), images.shape[1:])

    def _read(self, rows: np.ndarray) -> np.ndarray:
        means = np.empty((len(rows), *self._image_shape), dtype=np.uint8)
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            one, other = (self._images[which[chunk]] for which in (self._first, self._second))
            means[start : start + _CHUNK] = (one.astype(np.uint16) + other + 1) // 2
        return means


def view(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Rows of an array (copied) or of undecoded images (a view), typed as an array as `Faces.images` is."""
    return cast(np.ndarray, images.view(indices)) if isinstance(images, LazyImages) else images[indices]


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The arrays as one; undecoded where one of them is."""
    if any(isinstance(part, LazyImages) for part in parts):
        return cast(np.ndarray, JoinedImages(parts))
    return np.concatenate(parts)


def means(images: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The means of images `first` and `second`, (M,) indices; of undecoded images, they are made when looked at."""
    made = MeanImages(images, first, second)
    return cast(np.ndarray, made) if isinstance(images, LazyImages) else made[:]
