"""Templates: IJB-B and IJB-C with their `meta` folder, and lists of one's own for IJB-S and BRIAR."""

import csv
from pathlib import Path

import numpy as np

from faces.errors import UserError
from faces.protocols.types import Member, Photo, Templates


def read_ijb(root: Path) -> Templates:
    """IJB-B or IJB-C as `meta` and `loose_crop`, X = b or c.

    `meta/ijbX_face_tid_mid.txt` (image, template, medium), `ijbX_template_pair_label.txt`, landmarks in
    `ijbX_name_5pts_score.txt`; where they are there, the 1:N lists `ijbX_1N_gallery_G1.csv`, `..._G2.csv` and
    `ijbX_1N_probe_mixed.csv`.
    """
    meta = root / "meta"
    found = sorted(meta.glob("ijb[bc]_face_tid_mid.txt"))
    if len(found) != 1:
        raise UserError(f"{meta} holds {len(found)} lists ijbX_face_tid_mid.txt: give IJB-B's or IJB-C's folder")
    name = found[0].name[:4]
    scores = meta / f"{name}_name_5pts_score.txt"
    try:
        points = {row[0]: np.array(row[1:11], dtype=np.float64).reshape(5, 2) for row in _rows(scores, 12)}
    except ValueError as problem:
        raise UserError(f"{scores} is not of IJB's form: {problem}") from None
    members = tuple(
        Member(Photo(root / "loose_crop" / image, points.get(image)), template, medium)
        for image, template, medium in _rows(found[0], 3)
    )
    compared = tuple((a, b, same == "1") for a, b, same in _rows(meta / f"{name}_template_pair_label.txt", 3))
    galleries = sorted(meta.glob(f"{name}_1N_gallery_G*.csv"))
    probes = meta / f"{name}_1N_probe_mixed.csv"
    if not galleries or not probes.is_file():
        return Templates(members, compared)
    subjects: dict[str, str] = {}
    known = [pair for file in galleries for pair in _csv(file)]
    asked = _csv(probes)
    subjects = dict(known) | dict(asked)
    return Templates(members, compared, tuple(dict(known)), tuple(dict(asked)), subjects)


def read_lists(root: Path, gallery: Path, probes: Path) -> Templates:
    """CSV lists with columns template, subject, medium, path (relative to `root`): for IJB-S and BRIAR, whose own
    files are not public. Every probe template is compared with every gallery template."""
    members: list[Member] = []
    ids: list[list[str]] = []
    subjects: dict[str, str] = {}
    for side, file in (("g", gallery), ("p", probes)):
        names: dict[str, None] = {}
        try:
            with file.open(newline="", encoding="utf-8-sig") as held:
                for row in csv.DictReader(held):
                    template = f"{side}{row['template']}"
                    names[template] = None
                    subjects[template] = row["subject"]
                    members.append(Member(Photo(root / row["path"]), template, row["medium"], row["subject"]))
        except (OSError, KeyError, ValueError, TypeError, csv.Error) as problem:
            raise UserError(f"{file} is no list with the columns template,subject,medium,path: {problem!r}") from None
        ids.append(list(names))
    compared = tuple((g, p, subjects[g] == subjects[p]) for p in ids[1] for g in ids[0])
    return Templates(tuple(members), compared, tuple(ids[0]), tuple(ids[1]), subjects)


def _rows(path: Path, columns: int) -> list[list[str]]:
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path} cannot be read ({problem}): it belongs to IJB's meta folder") from None
    if any(len(row) != columns for row in rows):
        raise UserError(f"{path} is not of IJB's form: {columns} columns are expected in every line")
    return rows


def _csv(path: Path) -> list[tuple[str, str]]:
    """(template, subject) of each row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as held:
            rows = [(row["TEMPLATE_ID"], row["SUBJECT_ID"]) for row in csv.DictReader(held)]
        if any(None in row for row in rows):
            raise ValueError("a line ends too early")
    except (OSError, KeyError, ValueError, csv.Error) as problem:
        raise UserError(f"{path} is no list with TEMPLATE_ID and SUBJECT_ID: {problem!r}") from None
    return rows
