"""The alpha at which twin adapters are merged for export, and what that costs against each image's own."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.sidecar import Alpha, Price
from faces import verification
from faces.degrade import reduce
from faces.errors import UserError
from faces.intervals import pair_interval
from faces.verification import Pairs
from teachers.merging import alphas
from teachers.teacher import Teacher

POLICIES = ("gallery", "probe", "mean", "input")
PRICED_PX = (None, 32, 16)
"""Probe sizes, px of the teacher's crop (None = full size), at which the price is measured."""
LOW_PX = 16
"""The calibration set holds each face at full size and at this many px."""


def check_policy(policy: str) -> str:
    """The policy; UserError where it is none of `POLICIES` and no number in [0, 1]."""
    try:
        known = policy in POLICIES or 0 <= float(policy) <= 1
    except ValueError:
        known = False
    if not known:
        raise UserError(f"alpha {policy!r}: give a number in [0, 1] or one of {', '.join(POLICIES)}")
    return policy


def choose_alpha(policy: str, teacher: Teacher, crops: NDArray[np.uint8]) -> Alpha:
    """The alpha that a policy means, by full-size calibration crops (N, p, p, 3), N >= 2; its price not yet measured.

    The calibration set is the crops at full size and at 16 px. `gallery` and `probe`: the mean alpha of the half of
    the set with the higher and the lower quality; `mean`: of all; a number in [0, 1]: itself; `input`: alpha stays an
    input of the graph. UserError on anything else.
    """
    if check_policy(policy) == "input":
        return Alpha(policy="input", value=None, input="alpha", source="each image's own", price=())
    if policy not in POLICIES:
        return Alpha(policy="value", value=float(policy), input=None, source="given", price=())
    found = np.sort(np.concatenate([alphas(teacher, reduce(crops, px, teacher.input_px)) for px in (None, LOW_PX)]))
    # Alpha grows with quality: the upper half of the alphas belongs to the better half of the images.
    half = {"gallery": found[len(found) // 2 :], "probe": found[: len(found) // 2], "mean": found}[policy]
    where = {"gallery": "the better half of ", "probe": "the worse half of ", "mean": ""}[policy]
    source = f"mean over {where}{len(crops)} training faces at full size and at {LOW_PX} px"
    return Alpha(policy=policy, value=round(float(half.mean()), 4), input=None, source=source, price=())  # type: ignore[arg-type]


def price(
    teacher: Teacher,
    fixed: Teacher,
    crops: NDArray[np.uint8],
    pairs: Pairs | None,
    identities: NDArray[np.int64],
    sizes: Sequence[int | None] = PRICED_PX,
) -> tuple[Price, ...]:
    """What `fixed` (see `teachers.merging.merged`) loses against each image's own alpha, per probe size.

    crops: (N, p, p, 3) full-size crops of faces with identities (N,); pairs: which are compared, the second face at
    the probe size, the first at full size, or None: cosines alone.
    """
    full: dict[bool, NDArray[np.float32]] = {}
    found = []
    for px in (None, *(px for px in sizes if px is not None)):
        small = reduce(crops, px, teacher.input_px)
        probes = {True: fixed.embed(small), False: teacher.embed(small)}
        if px is None:
            full = probes
        cosine = verification.similarity(probes[True], probes[False], "cosine")
        told: dict[str, float | tuple[float, float] | None] = {
            "accuracy": None, "accuracy_per_image": None, "ci95": None,
        }  # fmt: skip
        if pairs is not None:
            right = {
                which: verification.correct_by_fold(
                    verification.similarity(full[which][pairs.a], probes[which][pairs.b], teacher.metric), pairs
                )
                for which in (True, False)
            }
            apart = right[True].astype(np.float64) - right[False]
            low, high = pair_interval(apart, pairs, identities)
            told = {
                "accuracy": 100 * float(right[True].mean()),
                "accuracy_per_image": 100 * float(right[False].mean()),
                "ci95": (100 * low, 100 * high),
            }
        least, mean = float(cosine.min()), float(cosine.mean())
        count = 0 if pairs is None else len(pairs.same)
        found.append(Price(px=px, cosine_least=least, cosine_mean=mean, pairs=count, **told))  # type: ignore[arg-type]
    return tuple(found)
