"""AdaFace: a margin that follows the feature's norm, which stands for the image's quality.

Kim et al., "AdaFace: Quality Adaptive Margin for Face Recognition", 2022; the equations are numbered as in
QGFace, which uses the same statistics to part images by quality.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faces.losses.margin import Head, safe_acos


class NormStatistics(nn.Module):
    """Where a feature's norm lies among those seen lately: norms (B,) to zhat (B,) in [-1, 1], equation 1.

    zhat = concentration * (norm - mean) / (std + .001), clipped, without gradient; norms are clipped to
    [.001, 100]. In training mode the batch first moves mean and std by `momentum`. They start as the first
    batch's own: the published 0 (QGFace) or 20 and 100 (AdaFace) send nearly every early image to one side.
    In evaluation mode before any training the batch's own serve too. On several processes, call it with the
    gathered norms.
    """

    mean: Tensor
    std: Tensor
    started: Tensor

    def __init__(self, momentum: float = 0.01, concentration: float = 0.333) -> None:
        super().__init__()
        self.momentum, self.concentration = momentum, concentration
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def forward(self, norms: Tensor) -> Tensor:
        norms = norms.detach().to(self.mean.dtype).clamp(0.001, 100)
        # One norm has no spread of its own: the one known so far stays.
        mean, std = norms.mean(), norms.std() if len(norms) > 1 else self.std
        if self.training:
            share = torch.where(self.started, self.momentum, 1.0)
            self.mean += share * (mean - self.mean)
            self.std += share * (std - self.std)
            self.started.fill_(True)
        mean, std = torch.where(self.started, self.mean, mean), torch.where(self.started, self.std, std)
        return (self.concentration * (norms - mean) / (std + 0.001)).clamp(-1, 1)


class AdaFace(Head):
    """`forward(features (B, D), labels (B,), zhat (B,) or None)` gives losses (B,): equations 6-10.

    The target's logit is scale * (cos(angle - margin * zhat) - margin * zhat - margin), others scale *
    cos(angle); as in the published code the shifted angle is held to [0, pi]. Without zhat the features' own
    norms are looked up in `statistics` (and, in training mode, move it).
    """

    def __init__(self, embedding_dim: int, classes: int, margin: float = 0.4, scale: float = 64.0) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(torch.randn(classes, embedding_dim))
        self.statistics = NormStatistics()

    @property
    def proxies(self) -> Tensor:
        return self.weight

    def forward(self, features: Tensor, labels: Tensor, zhat: Tensor | None = None) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.weight.dtype)
            zhat = self.statistics(features.norm(dim=1)) if zhat is None else zhat.detach()
            shift = self.margin * zhat.to(features.dtype)
            cosine = F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).T
            angle = safe_acos(cosine.gather(1, labels[:, None]).squeeze(1))
            target = torch.cos((angle - shift).clamp(0, math.pi)) - (shift + self.margin)
            logits = cosine.scatter(1, labels[:, None], target[:, None])
            return F.cross_entropy(self.scale * logits, labels, reduction="none")
