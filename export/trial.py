"""Which of the unseen faces an export is tried on, and which pairs of them are compared."""

from pathlib import Path

import numpy as np

from faces.dataset import Faces
from faces.errors import UserError
from faces.verification import Pairs, make_pairs, read_pairs


def choose_faces(test: Faces, file: Path | None, most: int, seed: int) -> tuple[Faces, Pairs | None, str]:
    """At most `most` of the faces, their pairs (None: too few people for any), and what to say of these, or nothing.

    The pairs are those of `file`, a CSV, where its faces are not more than `most`; else as many as can be drawn. The
    faces of the file come first, then whole people by seed, so that pairs are left, and unlabelled faces last.
    UserError where the file does not fit the faces.
    """
    fixed = None if file is None else read_pairs(file, test.keys)
    named = np.empty(0, dtype=np.int64) if fixed is None else np.union1d(fixed.a, fixed.b)
    fits = len(named) <= most
    if len(test) > most:
        people = np.argsort(np.random.default_rng([seed, 17]).permutation(test.identities.max() + 1))
        # The last place is that of identity -1.
        rank = np.append(people, len(people))[test.identities]
        if fits:
            rank[named] = -1
        test = test.subset(np.sort(np.argsort(rank, kind="stable")[:most]))
    if file is not None and fits:
        return test, read_pairs(file, test.keys), ""
    try:
        pairs = make_pairs(test.identities, seed)
    except UserError:
        # The sidecar then says no accuracy.
        return test, None, ""
    said = f"; pairs drawn from {len(test)} faces, as the fixed ones need {len(named)}"
    return test, pairs, "" if fits else said
