"""Lists of pairs beside a folder of images: LFW and its relatives, AgeDB, CFP."""

import re
from collections.abc import Callable
from pathlib import Path

from faces.errors import UserError
from faces.protocols.types import PairList, Photo
from faces.sources.folder import SUFFIXES

FOLDS = 10


def read_lfw(images: Path, pairs: Path) -> PairList:
    """LFW's pairs.txt, which XQLFW keeps: `10 300`, then in each fold 300 lines `NAME i j` and 300 `NAME i OTHER j`;
    image `NAME/NAME_0001.*`. UserError where the list is not of that form."""
    lines = [line.split() for line in _lines(pairs)]
    try:
        folds, count = (int(lines[0][0]), int(lines[0][1])) if len(lines[0]) == 2 else (1, int(lines[0][0]))
        rows = lines[1:]
        if len(rows) != 2 * folds * count:
            raise ValueError(f"{len(rows)} pairs, its first line names {2 * folds * count}")
        found = _Photos(lambda path: path.parent.name)
        for number, row in enumerate(rows):
            same = len(row) == 3
            name, i, other, j = (row[0], row[1], row[0], row[2]) if same else row
            found.add(_lfw(images, name, int(i)), _lfw(images, other, int(j)), same, number // (2 * count))
    except (ValueError, IndexError) as problem:
        raise UserError(f"{pairs} is no list of LFW's form (`NAME i j`, `NAME i OTHER j`): {problem}") from None
    return found.done()


def read_two_lines(images: Path, pairs: Path) -> PairList:
    """CALFW's, CPLFW's and SLLFW's lists: an image a line, two lines a pair, behind the name a label (0 = different
    people; CALFW numbers the folds in it); without labels, as in SLLFW, the first half of each fold is genuine."""
    rows = [line.split() for line in _lines(pairs)]
    if len(rows) % (2 * FOLDS) or not rows or any(len(row) not in (1, 2) for row in rows):
        raise UserError(f"{pairs} is no list of two lines a pair in {FOLDS} folds: it has {len(rows)} lines")
    found, count = _Photos(lambda path: re.sub(r"_\d+$", "", path.stem)), len(rows) // 2
    for number in range(count):
        first, second = rows[2 * number], rows[2 * number + 1]
        fold = number * FOLDS // count
        half = number - fold * (count // FOLDS) < count // FOLDS / 2
        same = half if len(first) == 1 else first[1] != "0"
        found.add(images / first[0], images / second[0], same, fold)
    return found.done()


def read_three_columns(images: Path, pairs: Path) -> PairList:
    """`IMAGE IMAGE 1|0` a line, in ten contiguous folds: AgeDB-30's usual text form, images `NUMBER_NAME_AGE_SEX.*`."""
    rows = [line.split() for line in _lines(pairs)]
    if len(rows) < FOLDS or any(len(row) != 3 or row[2] not in ("0", "1") for row in rows):
        raise UserError(f"{pairs} is no list of `IMAGE IMAGE 1|0` lines, at least {FOLDS}")
    found = _Photos(lambda path: parts[1] if len(parts := path.stem.split("_")) == 4 else path.stem)
    for number, (first, second, same) in enumerate(rows):
        found.add(images / first, images / second, same == "1", number * FOLDS // len(rows))
    return found.done()


def read_cfp(root: Path, kind: str = "FP") -> PairList:
    """CFP's own folder: Protocol/Pair_list_F.txt and _P.txt (`NUMBER PATH`), Protocol/Split/FP/01/same.txt and
    diff.txt (`i,j`), images PERSON/frontal/01.jpg. kind: `FP` frontal-profile, `FF` frontal-frontal."""
    protocol = root / "Protocol"
    lists = {side: _cfp_paths(protocol, f"Pair_list_{side}.txt") for side in set(kind)}
    found = _Photos(lambda path: path.parents[1].name)
    folds = sorted((protocol / "Split" / kind).glob("[0-9]*"))
    if len(folds) < 2:
        raise UserError(f"{protocol / 'Split' / kind} holds no folds 01, 02, ...: is {root} CFP's folder?")
    for fold, folder in enumerate(folds):
        for name, same in (("same.txt", True), ("diff.txt", False)):
            for line in _lines(folder / name):
                try:
                    i, j = line.replace(",", " ").split()
                    paths = lists[kind[0]][i], lists[kind[1]][j]
                except (ValueError, KeyError):
                    raise UserError(f"{folder / name}: {line!r} is no pair of its lists") from None
                found.add(*paths, same, fold)
    return found.done()


def _cfp_paths(protocol: Path, name: str) -> dict[str, Path]:
    rows = [line.split(maxsplit=1) for line in _lines(protocol / name)]
    # Written on Windows, and relative to the folder of the list.
    return {row[0]: (protocol / row[1].strip().replace("\\", "/")).resolve() for row in rows if len(row) == 2}


def _lfw(images: Path, name: str, number: int) -> Path:
    stem = images / name / f"{name}_{number:04d}"
    there = [stem.with_suffix(suffix) for suffix in (".jpg", *SUFFIXES) if stem.with_suffix(suffix).is_file()]
    return there[0] if there else stem.with_suffix(".jpg")


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path} cannot be read ({problem}): give the protocol's own list") from None


class _Photos:
    """Photos once each, in the order in which pairs name them. person: of a photo, by its path."""

    def __init__(self, person: Callable[[Path], str]) -> None:
        self._person = person
        self._index: dict[Path, int] = {}
        self._pairs: list[tuple[int, int, bool, int]] = []

    def add(self, first: Path, second: Path, same: bool, fold: int) -> None:
        i, j = (self._index.setdefault(path, len(self._index)) for path in (first, second))
        self._pairs.append((i, j, same, fold))

    def done(self) -> PairList:
        people = tuple(map(self._person, self._index))
        return PairList(tuple(Photo(path) for path in self._index), people, tuple(self._pairs))
