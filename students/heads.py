"""What only a student's training needs behind its 128-d feature: the classification loss, and a map to the targets."""

from typing import Any

import torch
from pytorch_metric_learning.losses import SphereFaceLoss
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor, nn
from torch.nn import functional as F

from faces.losses.center import CenterLoss
from faces.losses.margin import DEFAULTS, Head, MarginHead, SoftmaxHead, create_margin
from students.student import EMBEDDING_DIM

CLASS_LOSSES = ("softmax", "center", "sphereface", "sphereface+", "cosface", "arcface")
"""Table IV of bridge distillation, and SphereFace as it is without the plus."""
CENTER_WEIGHT = 0.003
ENERGY_WEIGHT = 1.0


class Heads(nn.Module):
    """identity: the classification loss, None without classes; widen: a linear map to targets of another width."""

    def __init__(self, classes: int, width: int, class_loss: str = "softmax") -> None:
        super().__init__()
        self.identity = create_class_loss(class_loss, classes) if classes else None
        self.widen = nn.Linear(EMBEDDING_DIM, width) if width not in (0, EMBEDDING_DIM) else nn.Identity()


def create_class_loss(name: str, classes: int) -> nn.Module:
    """One of CLASS_LOSSES on features (B, 128) and labels (B,), -1 = unlabelled, whose losses (B,) mean nothing.

    Margins and scales are the published ones (`faces.losses.margin.DEFAULTS`).
    """
    if name == "center":
        return _SoftmaxCenter(classes)
    if name == "sphereface+":
        return _SpherePlus(classes)
    return _Known(_sphereface(classes) if name == "sphereface" else create_margin(name, EMBEDDING_DIM, classes))


class AnnealedSphereFaceLoss(SphereFaceLoss):
    """The library's SphereFace, whose margin grows: without that a network that starts at random shrinks its features
    to nothing. The person's cosine is (w cos + psi) / (1 + w) with psi the margin's, w falling with each training
    step from 1000 to 5 as 1000 / (1 + .12 steps) (Liu et al. 2017, and its published training)."""

    steps: Tensor

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def modify_cosine_of_target_classes(self, cosine_of_target_classes: Tensor) -> Tensor:
        plain = (1000 / (1 + 0.12 * self.steps)).clamp(min=5)
        margin = super().modify_cosine_of_target_classes(cosine_of_target_classes)
        if self.training:
            self.steps += 1
        return (plain * cosine_of_target_classes + margin) / (1 + plain)


def _sphereface(classes: int) -> MarginHead:
    margin, scale = DEFAULTS["sphereface"]
    return MarginHead(
        AnnealedSphereFaceLoss(
            num_classes=classes, embedding_size=EMBEDDING_DIM, margin=margin, scale=scale, reducer=DoNothingReducer()
        )
    )


class _Known(nn.Module):
    """A head that gets class 0 in place of none."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, feature: Tensor, labels: Tensor) -> Tensor:
        return self.head(feature, labels.clamp(min=0))


class _SoftmaxCenter(nn.Module):
    """Softmax and, CENTER_WEIGHT times, the distance to the person's centre (Wen et al. 2016, eq. 5)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.softmax = _Known(SoftmaxHead(EMBEDDING_DIM, classes))
        self.center = CenterLoss(EMBEDDING_DIM, classes)

    def forward(self, feature: Tensor, labels: Tensor) -> Tensor:
        return self.softmax(feature, labels) + CENTER_WEIGHT * self.center(feature, labels)


class _SpherePlus(nn.Module):
    """SphereFace, and ENERGY_WEIGHT times the hyperspherical energy of the class weights (Liu et al. 2018, eq. 12)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = _sphereface(classes)

    def forward(self, feature: Tensor, labels: Tensor) -> Tensor:
        labels = labels.clamp(min=0)
        return self.head(feature, labels) + ENERGY_WEIGHT * energy(self.head.proxies, labels)


def energy(proxies: Tensor, labels: Tensor) -> Tensor:
    """How near the other classes' directions lie to each face's own: the mean over them of distance to the -2.

    proxies: (C, D) class weights of any length; labels: (B,) in [0, C); gives (B,), 0 for a single class. Source:
    Liu et al., "Learning towards Minimum Hyperspherical Energy", 2018, eq. 12 with s = 2.
    """
    unit = F.normalize(proxies)
    squared = (2 - 2 * unit[labels] @ unit.T).clamp(min=1e-6)
    others = torch.ones_like(squared).scatter_(1, labels[:, None], 0.0)
    return (others / squared).sum(1) / max(1, len(proxies) - 1)
