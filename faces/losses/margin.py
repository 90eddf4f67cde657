"""Softmax heads with a margin, through pytorch-metric-learning."""

import math
from typing import cast

import torch
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, SphereFaceLoss
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor, nn
from torch.nn import functional as F

from faces.errors import UserError

# Margin and scale: of a cosine (CosFace), radians (ArcFace), a factor of the angle (SphereFace).
DEFAULTS = {"softmax": (None, None), "sphereface": (4.0, 1.0), "cosface": (0.4, 64.0), "arcface": (0.5, 64.0)}
# acos has no gradient at 1 and -1, where a feature meets its proxy; whether a clamp to them lets the infinite one
# through differs between releases of torch.
NEAREST_COSINE = 1 - 1e-7


class _SafeArcFaceLoss(ArcFaceLoss):
    """The library's ArcFace, which never comes as near to angle 0 as to lose a finite gradient."""

    def get_angles(self, cosine_of_target_classes: Tensor) -> Tensor:
        return safe_acos(cosine_of_target_classes)


def safe_acos(cosine: Tensor) -> Tensor:
    """acos, any shape, with cosines drawn 1e-7 away from 1 and -1: finite gradients."""
    return torch.acos(cosine.clamp(-NEAREST_COSINE, NEAREST_COSINE))


class Head(nn.Module):
    """A classification loss; `forward`: features (B, D), labels (B,) in [0, classes), to losses (B,)."""

    @property
    def proxies(self) -> Tensor:
        """The classes' weight vectors, (classes, D): the parameter itself, or a view of it."""
        raise NotImplementedError

    @torch.no_grad()
    def set_proxies(self, proxies: Tensor) -> None:
        """Overwrite the classes' weight vectors, (classes, D), in place."""
        self.proxies.copy_(proxies)


class MarginHead(Head):
    """One of the library's heads."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    @property
    def proxies(self) -> Tensor:
        return cast(Tensor, self.loss.W).T

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        # The library casts its weights to the features' type, for good; a margin needs float32 anyway.
        with torch.autocast(features.device.type, enabled=False):
            return self.loss(features.to(self.proxies.dtype), labels)["loss"]["losses"]


class SoftmaxHead(Head):
    """A linear layer and cross-entropy."""

    def __init__(self, embedding_dim: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_dim, classes)

    @property
    def proxies(self) -> Tensor:
        return self.linear.weight

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.cross_entropy(self.linear(features.to(self.proxies.dtype)), labels, reduction="none")


def create_margin(
    name: str, embedding_dim: int, classes: int, margin: float | None = None, scale: float | None = None
) -> Head:
    """A head by name: softmax, sphereface, cosface, arcface.

    `forward(features (B, D), labels (B,))` gives losses (B,), which the caller averages; `proxies` gives the
    classes' weights (classes, D). margin: CosFace .4, taken from the cosine; ArcFace .5 rad, added to the
    angle (beyond pi - margin the library takes margin * sin(margin) from the cosine instead); SphereFace 4,
    a whole factor of the angle. scale: 64; SphereFace 1, times the feature's norm.
    Raises UserError on an unknown name, and on a margin or scale that the head does not know.
    """
    if name not in DEFAULTS:
        raise UserError(f"unknown margin loss {name!r}: choose among {', '.join(DEFAULTS)}")
    if name == "softmax":
        if margin is not None or scale is not None:
            raise UserError("softmax has neither margin nor scale: leave them out, or choose cosface or arcface")
        return SoftmaxHead(embedding_dim, classes)
    usual_margin, usual_scale = DEFAULTS[name]
    margin = usual_margin if margin is None else margin
    scale = usual_scale if scale is None else scale
    assert margin is not None
    common = {"num_classes": classes, "embedding_size": embedding_dim, "scale": scale, "reducer": DoNothingReducer()}
    if name == "cosface":
        return MarginHead(CosFaceLoss(margin=margin, **common))
    if name == "arcface":
        return MarginHead(_SafeArcFaceLoss(margin=math.degrees(margin), **common))
    # The library would cut a fraction off.
    if margin < 1 or margin != int(margin):
        raise UserError(f"SphereFace multiplies the angle by a whole number, not {margin}: set 2, 3 or 4")
    return MarginHead(SphereFaceLoss(margin=int(margin), **common))
