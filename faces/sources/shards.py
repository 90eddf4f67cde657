"""webdataset tar shards: `KEY.jpg|png|webp` beside `KEY.json` with `identity` (or null) and `landmarks`."""

import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faces.errors import UserError
from faces.sources.folder import SUFFIXES
from faces.sources.record import Place, Record, stamp

_FARTHEST = 1e6
"""A landmark so many px away is a mistake, as is an infinite one."""
_MOST_BYTES = 1 << 28
"""A member larger than that is no face: a sparse one of some bytes may claim terabytes."""


def read(path: Path) -> Iterator[Record]:
    """Records of one shard in file order; files that are neither image nor JSON are left out. A malformed note, one
    without its face, and one beside two images is a record with a problem.

    UserError where the file is no readable tar, ends before its end mark, or keeps the notes apart from the faces.
    """
    try:
        with tarfile.open(path) as archive:
            yield from _records(path, archive)
            # tarfile takes a header that it cannot read, or none at all, for the end.
            assert archive.fileobj is not None, "an open archive has a file"
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error, lzma.LZMAError) as problem:
        raise UserError(f"{path} cannot be read as a tar shard ({problem}); was the download cut short?") from None


def _records(path: Path, archive: tarfile.TarFile) -> Iterator[Record]:
    together, lone = False, (set[str](), set[str]())
    for key, parts, places in _samples(path, archive):
        suffix = next((suffix for suffix in parts if suffix in SUFFIXES), "")
        if suffix and ".json" in parts:
            together = True
        elif not together:
            own, other = lone if suffix else lone[::-1]
            own.add(key)
            if key in other:
                raise UserError(
                    f"{path}: {key}.json is not beside its face: in a webdataset shard a face and its note are "
                    "adjacent; pack it again in the order of the names"
                )
        yield _record(path, key, suffix, parts, places)


def _samples(path: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes], dict[str, Place]]]:
    """Key, files and places by suffix, of members that follow each other and have the key."""
    name, parts, places = "", dict[str, bytes](), dict[str, Place]()
    # A compressed archive has no place at which an image could be read again.
    plain = archive.fileobj if isinstance(archive.fileobj, io.BufferedReader) else None
    known = None if plain is None else stamp(plain)
    for member in archive:
        key, _, kind = member.name.rpartition(".")
        suffix = "." + kind.lower()
        # Hidden ones are macOS's notes on the others.
        hidden = member.name.rpartition("/")[2].startswith(".")
        if not member.isfile() or hidden or suffix not in SUFFIXES | {".json"}:
            continue
        if member.size > _MOST_BYTES:
            raise tarfile.ReadError(f"{member.name} claims {member.size} bytes")
        if parts and (key != name or suffix in parts):
            yield name, parts, places
            parts, places = {}, {}
        file = archive.extractfile(member)
        assert file is not None, "a regular member always has a file"
        name, parts[suffix] = key, file.read()
        if known is not None and not member.issparse():
            places[suffix] = Place(path, known, member.offset_data, member.size)
    if parts:
        yield name, parts, places


def _record(path: Path, key: str, suffix: str, parts: dict[str, bytes], places: dict[str, Place]) -> Record:
    """The record of a sample whose image is `suffix`, "" where it has none."""
    name = f"{path.stem}/{key}"
    if not suffix:
        return Record(name, b"", None, problem="note without its face beside it")
    if len(parts.keys() & SUFFIXES) > 1:
        return Record(name, b"", None, problem="two images of one key")
    try:
        note = json.loads(parts.get(".json", b"{}"))
        identity, points = note.get("identity"), note.get("landmarks")
        if not isinstance(identity, str | int | None) or isinstance(identity, bool):
            raise TypeError(f"its identity is {identity!r}")
        landmarks = None if points is None else np.asarray(points, dtype=np.float64).reshape(5, 2)
        if landmarks is not None and (np.abs(landmarks) > _FARTHEST).any():
            raise ValueError("a landmark that is in no image")
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return Record(name, b"", None, problem="malformed note")
    return Record(
        name,
        parts[suffix],
        None if identity is None else str(identity),
        landmarks,
        place=places.get(suffix),
    )
