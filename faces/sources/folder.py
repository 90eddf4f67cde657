"""Identity folders: `ROOT/PERSON/IMAGE.jpg`, one folder a person (any depth below it)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from faces.errors import UserError
from faces.sources.record import Place, Record, stamp

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".pgm", ".ppm", ".tif", ".tiff"})


def read(root: Path) -> Iterator[Record]:
    """Records in the order of sorted paths; files of other kinds are left out. UserError where no image is."""
    people = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = False
    for person in people:
        for path in sorted(person.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                found = True
                with path.open("rb") as file:
                    known = stamp(file)
                    data = file.read()
                place = Place(path, known, 0, known[0])
                yield Record(f"{root.name}/{path.relative_to(root)}", data, person.name, place=place)
    if not found:
        raise UserError(
            f"no face images in {root}: expected one folder a person ({root}/PERSON/IMAGE.jpg), "
            f"with files ending in {', '.join(sorted(SUFFIXES))}"
        )


def left_out(root: Path) -> Counter[str]:
    """What `read` passes over, counted by reason; hidden files are not counted."""
    reasons: Counter[str] = Counter()
    for path in root.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            reasons["image outside the identity folders"] += path.suffix.lower() in SUFFIXES
            continue
        files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
        images = sum(file.suffix.lower() in SUFFIXES for file in files)
        reasons["identity folder without images"] += not images
        reasons["file whose name has no image's ending"] += len(files) - images
    return +reasons
