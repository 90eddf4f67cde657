"""Octuplet loss: four triplet losses between faces at high and at low resolution.

Knoche et al., "Octuplet Loss: Make Face Recognition Robust to Image Resolution", 2023, equations 1-11. The
published PyTorch code detaches the distances, so nothing trains by it; here the gradient flows.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from faces.errors import UserError

Distance = Literal["euclidean", "squared", "cosine"]
# Anchor, positive, negative; h: high resolution, l: low.
TERMS = ("hhh", "hll", "lhh", "lll")
PAPER_MARGIN, PAPER_NORM = 25.0, 22.0


def octuplet_loss(
    high: Tensor,
    low: Tensor,
    labels: Tensor,
    *,
    margin: float,
    terms: Sequence[str] = TERMS,
    distance: Distance = "euclidean",
    normalise: bool = False,
) -> dict[str, Tensor]:
    """The loss of each term, a scalar; their sum is the paper's (equation 11).

    high, low: (B, D), row i of `low` being the low-resolution copy of the face of row i of `high`; labels:
    (B,), each identity exactly twice, and -1. Positive: the other face of the anchor's identity; negative: of the
    other identities' faces the nearest one, chosen for each anchor and term (equation 6). The anchor's own
    copy is neither. Mean over all anchors, those of loss 0 included. normalise: features of length 1 first.

    A face labelled -1 is ours, not the paper's: someone of whom there is no other face. Its own copy is its positive
    in hll and lhh, in hhh and lll it is no anchor, and to everyone else it is a negative.
    Raises ValueError on other shapes or labels, UserError on an unknown term or distance.
    """
    if high.shape != low.shape or high.dim() != 2 or labels.shape != high.shape[:1]:
        raise ValueError(f"high {tuple(high.shape)}, low {tuple(low.shape)}, labels {tuple(labels.shape)} do not fit")
    if distance not in get_args(Distance):
        raise UserError(f"unknown distance {distance!r}: choose among {', '.join(get_args(Distance))}")
    if not terms or not set(terms) <= set(TERMS):
        raise UserError(f"octuplet terms {', '.join(terms) or '(none)'}: choose among {', '.join(TERMS)}")
    known = labels >= 0
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = own | ((labels[:, None] == labels) & known)
    if known.sum() < 4 or not bool((same.sum(1) == 1 + known.int()).all()):
        raise ValueError("a batch needs two or more identities, and exactly two faces of each")
    partner = torch.where(known[:, None], same & ~own, own).int().argmax(1, keepdim=True)
    features = {"h": high, "l": low}
    if normalise:
        features = {side: F.normalize(rows, dim=1) for side, rows in features.items()}
    losses = {}
    for term in terms:
        # Positive and negative are of one resolution, so one matrix of distances serves both.
        apart = distances(features[term[0]], features[term[1]], distance)
        positive = apart.gather(1, partner).squeeze(1)
        negative = apart.masked_fill(same, torch.inf).min(1).values
        triplet = (positive - negative + margin).clamp_min(0)
        losses[term] = (triplet if term[0] != term[1] else triplet[known]).mean()
    return losses


def distances(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    """Distances of each row of a (N, D) to each of b (M, D): (N, M), equations 2-4.

    Equal rows have distance 0 and gradient 0. At least float32, also under autocast.
    """
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype in (torch.float16, torch.bfloat16):
            a, b = a.float(), b.float()
        if distance == "cosine":
            return 1 - F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
        # |a|^2 - 2ab + |b|^2 by a matrix product would lose near pairs in float32, and its root has no gradient at 0.
        plain = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        return plain if distance == "euclidean" else plain.square()


def margin_for(features: Tensor, distance: Distance = "euclidean", normalise: bool = False) -> float:
    """The margin that suits this teacher's features (N, D) of many people. Measure it before training.

    The paper's Euclidean margin of 25 belongs to its ArcFace features, whose norms are about 22: here it is 25 / 22
    of the median distance from the features' middle (the median of each dimension), as distances do not see what all
    faces share; ArcFace's middle is near 0. The paper tuned margins for the other distances and does not give them:
    ours is the same one as they measure it, its square for squared distances, half the square at norm 1 for cosine.
    """
    features = features.detach().float()
    if normalise or distance == "cosine":
        features = F.normalize(features, dim=1)
    margin = PAPER_MARGIN / PAPER_NORM * float((features - features.median(0).values).norm(dim=1).median())
    return {"euclidean": margin, "squared": margin**2, "cosine": margin**2 / 2}[distance]
