"""webdataset tar shards: `KEY.jpg|png|webp` beside `KEY.json` with `identity` (or null) and `landmarks`."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faces.errors import UserError
from faces.sources.folder import SUFFIXES
from faces.sources.record import Record


def read(path: Path) -> Iterator[Record]:
    """Records of one shard in file order. UserError where the file is no readable tar or a JSON is malformed."""
    try:
        with tarfile.open(path) as archive:
            yield from _records(path, archive)
    except (tarfile.TarError, EOFError, OSError) as problem:
        raise UserError(f"{path} cannot be read as a tar shard ({problem}); was the download cut short?") from None


def _records(path: Path, archive: tarfile.TarFile) -> Iterator[Record]:
    name, parts = "", {}
    for member in archive:
        if not member.isfile():
            continue
        key, _, suffix = member.name.rpartition(".")
        if key != name and parts:
            yield _record(path, name, parts)
            parts = {}
        file = archive.extractfile(member)
        assert file is not None, "a regular member always has a file"
        name, parts["." + suffix.lower()] = key, file.read()
    if parts:
        yield _record(path, name, parts)


def _record(path: Path, key: str, parts: dict[str, bytes]) -> Record:
    image = next((data for suffix, data in parts.items() if suffix in SUFFIXES), b"")
    try:
        note = json.loads(parts.get(".json", b"{}"))
        identity, points = note.get("identity"), note.get("landmarks")
        landmarks = None if points is None else np.asarray(points, dtype=np.float64).reshape(5, 2)
    except (ValueError, TypeError, AttributeError) as problem:
        raise UserError(f"{path}: {key}.json is not a face's note ({problem})") from None
    return Record(f"{path.stem}/{key}", image, None if identity is None else str(identity), landmarks)
