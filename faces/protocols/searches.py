"""Identification in folders: TinyFace, SCface, UCCS-style closed sets."""

import re
from pathlib import Path

import numpy as np

from faces.errors import UserError
from faces.protocols.types import Photo, Search
from faces.sources.folder import SUFFIXES


def read_tinyface(root: Path) -> Search:
    """`Testing_Set/{Gallery_Match,Probe,Gallery_Distractor}` and the two .mat files that tell whom an image shows.

    UserError where a folder or a .mat file is missing or none; images that the lists name and the folders lack are
    given all the same and counted by whoever opens them.
    """
    base = root / "Testing_Set" if (root / "Testing_Set").is_dir() else root
    distractors = base / "Gallery_Distractor"
    if not distractors.is_dir():
        raise UserError(f"{base} lacks Gallery_Distractor: give TinyFace's folder, with Testing_Set in it")
    return Search(
        gallery=_mat(base / "gallery_match_img_ID_pairs.mat", "gallery", base / "Gallery_Match"),
        probes=_mat(base / "probe_img_ID_pairs.mat", "probe", base / "Probe"),
        distractors=tuple(Photo(path) for path in _images(distractors)),
    )


def _mat(file: Path, side: str, folder: Path) -> tuple[tuple[Photo, str], ...]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        held = loadmat(str(file))
        names, ids = held[f"{side}_set"], held[f"{side}_ids"]
        # A cell array: each element is itself an array of one string.
        texts = [str(np.asarray(one).ravel()[0]) for one in np.asarray(names).ravel()]
        people = [str(int(one)) for one in np.asarray(ids).ravel()]
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError, MatReadError) as problem:
        raise UserError(f"{file} is not TinyFace's list ({side}_set, {side}_ids): {problem}") from None
    if len(texts) != len(people):
        raise UserError(f"{file} names {len(texts)} images and {len(people)} people")
    return tuple((Photo(folder / text.strip()), person) for text, person in zip(texts, people, strict=True))


def read_scface(root: Path) -> dict[str, Search]:
    """`d1`, `d2`, `d3` (4.2, 2.6 and 1.0 m): the frontal mug shots against the pictures of cameras 1 to 5.

    Files anywhere below `root`, named `001_frontal.*` and `001_cam1_1.*` (person, camera, distance).
    """
    images = _images(root)
    frontal = [(path, one[1]) for path in images if (one := re.fullmatch(r"(\d+)_frontal", path.stem))]
    seen = [(path, one[1], one[2]) for path in images if (one := re.fullmatch(r"(\d+)_cam[1-5]_([1-3])", path.stem))]
    if not frontal or not seen:
        raise UserError(f"{root} holds no SCface images (001_frontal.jpg, 001_cam1_1.jpg)")
    gallery = tuple((Photo(path), person) for path, person in frontal)
    return {
        f"d{distance}": Search(gallery, tuple((Photo(path), person) for path, person, far in seen if far == distance))
        for distance in "123"
    }


def read_closed_set(root: Path, seed: int = 0, test_share: float = 935 / 5435) -> Search:
    """UCCS-style: identity folders; of each person's images a random share is searched for, the rest is known.

    The share is the paper's 935 of 5,435; at least one image of each side, so people with one image are left out.
    """
    rng = np.random.default_rng([seed, 404])
    known: list[tuple[Photo, str]] = []
    asked: list[tuple[Photo, str]] = []
    for person in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
        photos = _images(person)
        if len(photos) < 2:
            continue
        test = min(max(1, round(test_share * len(photos))), len(photos) - 1)
        for rank, index in enumerate(rng.permutation(len(photos))):
            (asked if rank < test else known).append((Photo(photos[index]), person.name))
    if not known:
        raise UserError(f"{root} holds no person with two images: expected {root}/PERSON/IMAGE.jpg")
    return Search(tuple(known), tuple(asked))


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
