"""Validation parts: people who are not learnt from, fixed pairs of their faces, and what values of the pairs say."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faces.dataset import Faces
from faces.errors import UserError
from faces.intervals import pair_interval
from faces.sources import open_faces
from faces.verification import Pairs, Roc, read_pairs


@dataclass(frozen=True)
class Part:
    """People who are not learnt from, and P fixed pairs of their faces."""

    name: str
    faces: Faces
    pairs: Pairs

    def state(self) -> list[Any]:
        """Changes with the faces and the pairs: what is kept of them carries it in its name."""
        pairs = (self.pairs.a, self.pairs.b, self.pairs.same, self.pairs.fold)
        return [self.name, self.faces.state(), *(column.tolist() for column in pairs)]

    def interval(self, values: np.ndarray) -> dict[str, Any]:
        """`points`, the mean of values of the pairs (P,) in percent, and `ci95` (`pair_interval`)."""
        bounds = pair_interval(values, self.pairs, self.faces.identities)
        return {"points": 100 * float(values.mean()), "ci95": [100 * bound for bound in bounds]}


def open_parts(vals: Iterable[tuple[str, str]]) -> list[Part]:
    """One part for each (faces, CSV of their pairs), named as its faces' file is; UserError where either is amiss,
    and where two have the same name, by which their scores are kept."""
    parts: list[Part] = []
    for spec, file in vals:
        faces = open_faces(spec)
        name = Path(spec).stem
        if name in {part.name for part in parts}:
            raise UserError(f"two of --val are named {name!r}: rename one of the files, or measure on one at a time")
        parts.append(Part(name, faces, read_pairs(Path(file), faces.keys)))
    return parts


def roc_of(scores: np.ndarray, pairs: Pairs) -> Roc:
    """The ROC of scores (P,) of fixed pairs."""
    return Roc(np.sort(scores[pairs.same]), np.sort(scores[~pairs.same]))
