"""Octuplet fine-tuning: four triplet terms between faces and their low-resolution copies."""

from typing import ClassVar

import torch
from torch import Tensor

from teachers import augment
from teachers.distributed import gather
from teachers.losses.octuplet import margin_for, octuplet_loss
from teachers.methods.base import Method
from teachers.settings import Finetune


class Octuplet(Method):
    """Knoche et al. 2023: two images of each person and their copies at 7, 14 or 28 px, mixed in a batch.

    Both copies share flip, brightness and saturation (section 4.2).
    """

    sampler: ClassVar[str] = "pairs"
    margin: Tensor

    def __init__(self, how: Finetune) -> None:
        super().__init__(how)
        self.register_buffer("margin", torch.tensor(how.triplet_margin or float("nan"), dtype=torch.float64))

    def start(self, features: Tensor, labels: Tensor) -> None:
        if self.how.triplet_margin is None:
            self.margin.fill_(margin_for(features, self.how.distance, self.how.normalise))

    def see(self, images: Tensor, draws: Tensor) -> list[Tensor]:
        high = augment.jitter(augment.flip(images, draws), draws, 0.2)
        return [high, augment.low_resolution(high, augment.mixed_px(draws, self.how.sizes))]

    def forward(self, features: list[Tensor], labels: Tensor, views: list[Tensor]) -> dict[str, Tensor]:
        high, low = (gather(view) for view in features)
        return octuplet_loss(
            high, low, gather(labels), margin=float(self.margin), terms=self.how.terms,
            distance=self.how.distance, normalise=self.how.normalise,
        )  # fmt: skip
