"""InsightFace training sets: `NAME.rec`, with or without its `NAME.idx`, read without mxnet.

RecordIO (dmlc): each part is the magic number, 3 bits of part flag and 29 of length, the bytes, padding to 4.
Where the magic number occurs in a record (at a multiple of 4), the writer cuts the record there and leaves it out.
A record is mxnet's IRHeader (flag, label, id, id2), `flag` float labels if that is not 0, and the JPEG. Record 0 of
InsightFace's own sets holds no image but the labels (end of the images, end of the identities).
The images are RGB and aligned to the 112 px template.
"""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from faces.errors import UserError
from faces.sources.record import Place, Record, stamp

_MAGIC = struct.pack("<I", 0xCED7230A)
_HEADER = struct.Struct("<IfQQ")
_WHOLE, _FIRST, _LAST = 0, 1, 3


class _Corrupt(Exception):
    """Why a record cannot be read."""


def read(path: Path) -> Iterator[Record]:
    """Records of one .rec file in the order of their keys; key `SET/NUMBER`, identity `SET-LABEL`.

    SET: the folder's name, with the file's where that is not `train`, so that two sets can be joined. With record
    0 as above only the images it tells of are read. Records that are corrupt carry their `problem`.
    UserError: no RecordIO file, or an index that is none.
    """
    folder = path.resolve().parent.name
    name = folder if path.stem == "train" else f"{folder}/{path.stem}"
    with path.open("rb") as file:
        known = stamp(file)
        if _next_record(file, 0, most=1 << 20) is None:
            raise UserError(f"{path} is no RecordIO file: no record begins in its first MiB")
        index = path.with_suffix(".idx")
        end, slack, count, reached = None, 0, 0, 0
        for key, offset in _indexed(index) if index.is_file() else _scanned(file, known[0]):
            # The end is a float32: beyond 2**24 it may be some images off.
            if end is not None and key >= end + slack:
                break
            try:
                payload, after = _payload(file, offset, known[0])
                labels, start = _labels(payload)
                if start > _HEADER.size and start == len(payload):
                    if key == 0:
                        end = _end(labels)
                        slack = int(np.spacing(np.float32(end)))
                    continue  # the range of an identity is no image either
                identity = f"{name}-{_number(labels[0])}"
            except _Corrupt as problem:
                # Told by itself; where the next one begins is not known.
                count, reached = count + (key > 0), known[0]
                yield Record(f"{name}/{key}", b"", None, problem=str(problem))
                continue
            count += key > 0
            reached = max(reached, after)
            # One frame takes 8 bytes and up to 3 of padding, two take 16 and save the 4 of a magic number.
            framed = after - offset - len(payload) >= 12
            length = after - offset if framed else len(payload) - start
            place = Place(path, known, offset if framed else offset + 8 + start, length, framed)
            yield Record(f"{name}/{key}", payload[start:], identity, aligned=True, place=place)
        # Without a record 0 nothing says how many there are.
        if end is None and index.is_file() and _next_record(file, reached) is not None:
            yield Record(name, b"", None, problem=f"end of the set ({index.name} ends before {path.name} does)")
    if end is not None and end - 1 - count > slack:
        yield Record(name, b"", None, problem=f"end of the set ({end - 1 - count} of {end - 1} images are not there)")


def unframe(data: bytes) -> bytes:
    """The image of a whole record, all its parts with their frames; b'' where it is corrupt."""
    try:
        payload, _ = _payload(io.BytesIO(data), 0, len(data))
        return payload[_labels(payload)[1] :]
    except _Corrupt:
        return b""


def _indexed(index: Path) -> Iterator[tuple[int, int]]:
    try:
        numbers = np.fromstring(index.read_bytes().decode("ascii"), dtype=np.int64, sep=" ")
        keys, offsets = numbers.reshape(-1, 2).T
        if not len(keys):
            raise ValueError("empty")
    except ValueError:
        raise UserError(
            f"{index} is no RecordIO index (KEY, tab, OFFSET a line); move it away and the .rec itself is scanned"
        ) from None
    for row in np.argsort(keys, kind="stable"):
        yield int(keys[row]), int(offsets[row])


def _scanned(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Every record's (number, offset). A corrupt one is given too; the next is sought by its magic number."""
    key, offset = 0, _next_record(file, 0)
    while offset is not None and offset < size:
        yield key, offset
        key += 1
        try:
            offset = _walk(file, offset, size)
        except _Corrupt:
            offset = _next_record(file, offset + 4)


def _payload(file: BinaryIO, offset: int, size: int) -> tuple[bytes, int]:
    """The record at `offset`, its parts joined, and where it ends, padding included."""
    parts: list[bytes] = []
    end = _walk(file, offset, size, parts)
    return _MAGIC.join(parts), end


def _walk(file: BinaryIO, offset: int, size: int, parts: list[bytes] | None = None) -> int:
    """Where the record at `offset` ends; its parts are added to `parts`. Nothing is read that the file lacks."""
    first = True
    while True:
        if offset < 0 or offset + 8 > size:
            raise _Corrupt("record beyond the end of its file")
        file.seek(offset)
        head = file.read(8)
        if head[:4] != _MAGIC:
            raise _Corrupt("record without its magic number")
        word = int.from_bytes(head[4:], "little")
        flag, length = word >> 29, word & ((1 << 29) - 1)
        if flag > _LAST or (flag <= _FIRST) != first:
            raise _Corrupt("record whose parts are out of order")
        if length > size - offset - 8:
            raise _Corrupt("record longer than its file")
        if parts is not None:
            parts.append(file.read(length))
        offset += 8 + length + -length % 4
        if flag in (_WHOLE, _LAST):
            return offset
        first = False


def _next_record(file: BinaryIO, offset: int, most: int | None = None, chunk: int = 1 << 20) -> int | None:
    """Offset of the first record that begins at or behind `offset`; None where none does (within `most` bytes)."""
    start = offset + -offset % 4
    while most is None or start < offset + most:
        file.seek(start)
        data = file.read(chunk + 4)
        at = data.find(_MAGIC)
        while at >= 0:
            word = data[at + 4 : at + 8]
            if at % 4 == 0 and len(word) == 4 and word[3] >> 5 <= _FIRST:
                return start + at
            at = data.find(_MAGIC, at + 1)
        if len(data) < chunk + 4:
            return None
        start += chunk
    return None


def _labels(payload: bytes) -> tuple[np.ndarray, int]:
    """(labels, where the image begins) of a record."""
    if len(payload) < _HEADER.size:
        raise _Corrupt("record shorter than its header")
    flag, label, _, _ = _HEADER.unpack_from(payload)
    if flag == 0:
        return np.array([label], dtype=np.float32), _HEADER.size
    if 4 * flag > len(payload) - _HEADER.size:
        raise _Corrupt("record shorter than its labels")
    return np.frombuffer(payload, "<f4", flag, _HEADER.size), _HEADER.size + 4 * flag


def _number(label: np.ndarray) -> int:
    if not (np.isfinite(label) and label >= 0 and label == int(label)):
        raise _Corrupt("label that is no identity number")
    return int(label)


def _end(labels: np.ndarray) -> int:
    if not (np.isfinite(labels[0]) and labels[0] >= 1):
        raise _Corrupt("record 0 without the end of the images")
    return int(labels[0])
