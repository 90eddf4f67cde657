"""Which of the unseen faces an export is tried on, and which pairs of them are compared."""

from pathlib import Path

import numpy as np

from faces.dataset import Faces
from faces.errors import UserError
from faces.verification import Pairs, make_pairs, read_pairs

_OF_ONE = 10
"""A set may hold hundreds of faces of one person: whole people alone would then be three of them, and a threshold or
an accuracy would be theirs."""


def choose_faces(test: Faces, file: Path | None, most: int, seed: int) -> tuple[Faces, Pairs | None, str]:
    """At most `most` of the faces, their pairs (None: too few people for any), and what to say of these, or nothing.

    The pairs are those of `file`, a CSV, where its faces are not more than `most`; else as many as can be drawn. The
    faces of the file come first, then people by seed with ten faces each, so that there are pairs of many people, then
    these people's other faces, and unlabelled faces last.
    UserError where the file does not fit the faces.
    """
    fixed = None if file is None else read_pairs(file, test.keys)
    named = np.empty(0, dtype=np.int64) if fixed is None else np.union1d(fixed.a, fixed.b)
    fits = len(named) <= most
    if len(test) > most:
        people = np.argsort(np.random.default_rng([seed, 17]).permutation(test.identities.max() + 1))
        # The last place is that of identity -1.
        rank = np.append(people, len(people))[test.identities]
        order = np.argsort(test.identities, kind="stable")
        place = np.empty_like(order)  # of a face among its person's
        place[order] = np.arange(len(order)) - np.searchsorted(test.identities, test.identities[order], sorter=order)
        level = np.where(test.identities < 0, 2, place >= _OF_ONE)
        if fits:
            level[named] = -1
        test = test.subset(np.sort(np.lexsort((rank, level))[:most]))
    if file is not None and fits:
        return test, read_pairs(file, test.keys), ""
    try:
        pairs = make_pairs(test.identities, seed)
    except UserError:
        # The sidecar then says no accuracy.
        return test, None, ""
    said = f"; pairs drawn from {len(test)} faces, as the fixed ones need {len(named)}"
    return test, pairs, "" if fits else said
