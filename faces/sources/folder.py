"""Identity folders: `ROOT/PERSON/IMAGE.jpg`, one folder a person (any depth below it)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from faces.errors import UserError
from faces.sources.record import Place, Record, stamp

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".pgm", ".ppm", ".tif", ".tiff"})
_LINK = "link that leads nowhere or to a folder"


def read(root: Path) -> Iterator[Record]:
    """Records in the order of sorted paths; files of other kinds are left out. UserError where no image is."""
    found = False
    for person, path in _images(root):
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


def first_person(root: Path) -> Path | None:
    """The first identity folder that holds an image."""
    return next((person for person, _ in _images(root)), None)


def left_out(root: Path) -> Counter[str]:
    """What `read` passes over, counted by reason; what is hidden is not counted."""
    reasons: Counter[str] = Counter()
    for path in root.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not path.exists():
            reasons[_LINK] += 1
            continue
        if not path.is_dir():
            reasons["image outside the identity folders"] += path.suffix.lower() in SUFFIXES
            continue
        found = [reason for _, reason in _below(path)]
        reasons["identity folder without images"] += None not in found
        reasons.update(reason for reason in found if reason is not None)
    return +reasons


def _images(root: Path) -> Iterator[tuple[Path, Path]]:
    """(identity folder, image in it), both sorted."""
    for person in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from ((person, path) for path, reason in _below(person) if reason is None)


def _below(person: Path) -> Iterator[tuple[Path, str | None]]:
    """(path, why it is no image to read, or None) of the files and useless links in a person's folder, sorted.

    Nothing that is hidden or in a hidden folder: half-written files and thumbnails are no faces.
    """
    for path in sorted(person.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(person).parts):
            continue
        if path.is_file():
            yield path, None if path.suffix.lower() in SUFFIXES else "file whose name has no image's ending"
        elif path.is_symlink():
            yield path, _LINK
