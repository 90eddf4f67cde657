"""InsightFace verification sets (`lfw.bin` and the like): a pickle of (JPEG files, issame).

A pickle can run any program, so it is read by an unpickler that knows bytes, text, numbers, lists, tuples and
numpy's booleans and numbers, and no name beyond those that these need. Python 2's `str` is read as bytes.
"""

import mmap
import pickle
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from faces import align
from faces.dataset import Faces, Integrity
from faces.errors import UserError
from faces.sources.record import Record, aligned_landmarks, check_colour, colour_warning, decode
from faces.verification import Pairs

FOLDS = 10


def read_bin(path: Path, colour: str = "rgb") -> tuple[Faces, Pairs]:
    """(faces, pairs) of a .bin file: pair k compares images 2k and 2k + 1, in ten contiguous folds.

    The faces are unlabelled and taken as ArcFace crops; none is left out, as the protocol needs them all.
    UserError: not such a file, an image that cannot be read, fewer than ten pairs, or pairs of one kind only.
    """
    check_colour(colour)
    files, same = _load(path)
    count = len(same)
    if count < FOLDS or same.all() or not same.any():
        raise UserError(
            f"{path} holds {int(same.sum())} genuine and {int((~same).sum())} impostor pairs; "
            f"{FOLDS} folds need {FOLDS} pairs of both kinds"
        )
    crops, landmarks = [], []
    for i, data in enumerate(files):
        image = decode(data, colour)
        if image is None:
            raise UserError(f"image {i} of {path} cannot be read, and without it the test is another: fetch it again")
        crop, points = align.loose_crop(image, aligned_landmarks(image))
        crops.append(crop)
        landmarks.append(points)
    images = np.stack(crops)
    warning = colour_warning(images)
    faces = Faces(
        images=images,
        landmarks=np.stack(landmarks),
        identities=np.full(2 * count, -1, dtype=np.int64),
        names=(),
        keys=tuple(f"{path.stem}/{i}" for i in range(2 * count)),
        source=str(path),
        licence="the user's own data: its licence was not stated",
        integrity=Integrity(2 * count, warnings=() if warning is None else (warning,)),
    )
    # As scikit-learn's KFold without shuffling: the first folds take one pair more where ten do not divide them.
    fold = np.repeat(np.arange(FOLDS), [count // FOLDS + (i < count % FOLDS) for i in range(FOLDS)])
    return faces, Pairs(np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2), same, fold)


def read(path: Path) -> Iterator[Record]:
    """The images as unlabelled records, keys `FILE/INDEX`."""
    for i, data in enumerate(_load(path)[0]):
        yield Record(f"{path.stem}/{i}", data, None, aligned=True)


def _load(path: Path) -> tuple[list[bytes], np.ndarray]:
    """(2P image files, issame (P,) bool)."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            # A map gives no more bytes than there are, whatever length the pickle claims.
            found = _Unpickler(memory, encoding="bytes").load()
        files, same = found
        images = [_bytes(one) for one in files]
        flags = np.array([bool(one) for one in (same.value if isinstance(same, _Array) else same)], dtype=bool)
    except _REFUSALS as problem:
        raise UserError(
            f"{path} is no verification set (a pickle of image files and issame flags): {_reason(problem)}"
        ) from None
    if len(images) != 2 * len(flags):
        raise UserError(f"{path} holds {len(images)} images for {len(flags)} pairs; two a pair are needed")
    return images, flags


_REFUSALS = (
    pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
    RecursionError, struct.error,
)  # fmt: skip


def _reason(problem: BaseException) -> str:
    if isinstance(problem, KeyError):
        return "it uses an instruction that such a file has no need of"
    return str(problem)[:200] or "it ends too early"


class _Name(NamedTuple):
    module: str
    name: str


class _Array:
    """A numpy array before and after its contents are known."""

    value: np.ndarray = np.zeros(0, dtype=np.uint8)


def _bytes(one: Any) -> bytes:
    if isinstance(one, _Array) and one.value.dtype == np.uint8:
        return one.value.tobytes()
    if not isinstance(one, bytes):
        raise ValueError(f"an image is of type {type(one).__name__}")
    return one


def _encode(text: str, encoding: str | bytes) -> bytes:
    # How Python 3 writes bytes in protocols 0 to 2.
    if encoding not in ("latin1", b"latin1"):
        raise ValueError("bytes in another encoding than latin1")
    return text.encode("latin1")


def _no_bytes(*nothing: object) -> bytes:
    if nothing:
        raise ValueError("bytes made from something")
    return b""


def _dtype(code: str | bytes, *_: object) -> "np.dtype[Any]":
    text = code.decode("ascii") if isinstance(code, bytes) else code
    if not re.fullmatch("b1|[iu][1248]", text):
        raise ValueError(f"a numpy array of {text[:20]!r}")
    return np.dtype(text)


def _scalar(dtype: "np.dtype[Any]", data: bytes) -> int:
    if len(data) != dtype.itemsize:
        raise ValueError("a numpy number of the wrong size")
    return int(np.frombuffer(data, dtype)[0])


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(data: bytes, dtype: "np.dtype[Any]", shape: tuple[int, ...], *_: object) -> _Array:
    array = _Array()
    array.value = np.frombuffer(data, dtype).reshape(shape)
    return array


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("numpy", "dtype"): _dtype,
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
_KNOWN = {*_CALLS, ("numpy", "ndarray")}


_Python: Any = pickle._Unpickler


class _Unpickler(_Python):
    """Python's own unpickler without the instructions that look up, call or change anything.

    In pure Python, as its memo is a dict: the one in C makes room for any index that the file names.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module[:60]}.{name[:60]}, which images and flags do not need")
        return _Name(module, name)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _CALLS[self.stack[-1]](*arguments)

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Array):
            _, shape, dtype, _, data = state
            target.value = np.frombuffer(data, dtype).reshape(shape)
        elif not isinstance(target, np.dtype) or state[1] not in ("|", "<", "=", b"|", b"<", b"="):
            raise ValueError("a state for something that has none")

    def _bytearray(self) -> None:
        # The original makes room for the length that the file names.
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    _allowed = (
        "PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 "
        "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
        "BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
        "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL"
    )
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **{op: _Python.dispatch[op] for op in (getattr(pickle, n)[0] for n in _allowed.split())},
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytearray,
    }
