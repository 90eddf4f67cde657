"""What the readers give: files and who is compared. A file that is not there is counted, never an error."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Photo:
    """An image of a protocol. landmarks: (5, 2) pixels where the data brings them, else None."""

    path: Path
    landmarks: np.ndarray | None = None


@dataclass(frozen=True)
class PairList:
    """Verification in folds: `photos`, whom each shows, and (a, b, same, fold) of each pair as indices of them."""

    photos: tuple[Photo, ...]
    people: tuple[str, ...]
    pairs: tuple[tuple[int, int, bool, int], ...]


@dataclass(frozen=True)
class Search:
    """Identification: who each gallery and probe photo shows. distractors: gallery photos of nobody searched for."""

    gallery: tuple[tuple[Photo, str], ...]
    probes: tuple[tuple[Photo, str], ...]
    distractors: tuple[Photo, ...] = ()


@dataclass(frozen=True)
class Member:
    """A photo of a template: the template's id, whom it shows, and its medium (an image or a video)."""

    photo: Photo
    template: str
    medium: str
    subject: str = ""


@dataclass(frozen=True)
class Templates:
    """IJB's kind of test. compared: (template, template, same) of 1:1; gallery, probes: template ids of 1:N, with
    `subject` of each template."""

    members: tuple[Member, ...]
    compared: tuple[tuple[str, str, bool], ...] = ()
    gallery: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    subjects: dict[str, str] = field(default_factory=dict)
