"""Octuplet fine-tuning: four triplet terms between faces and their low-resolution copies."""

import copy
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from faces.distributed import gather
from teachers import augment
from teachers.losses.octuplet import margin_for, octuplet_loss
from teachers.losses.queues import Ring
from teachers.losses.relational import relational_anchor
from teachers.methods.base import Method
from teachers.settings import Finetune

if TYPE_CHECKING:
    from teachers.backbones import Backbone

CROWD = 4096
"""Features of the teacher as it was, of the faces seen last, among which `relational` places each face."""


class Octuplet(Method):
    """Knoche et al. 2023: two images of each person and their copies at 7, 14 or 28 px, mixed in a batch.

    Both copies share flip, brightness and saturation (section 4.2), and contrast, which the paper leaves as it is, all
    by up to a fifth. `anchor` adds a term of ours, which the paper
    leaves out: the distance of either copy's feature from the one that the teacher, as it was, gives the full-size
    face. It holds the features where they were, so that far larger steps do not collapse them. `relational`, ours
    too, asks less: that either feature lies among those of other faces where that one lay. Neither needs an identity:
    without `singles`, rows whose label is -1 have these terms alone.
    """

    sampler: ClassVar[str] = "pairs"
    margin: Tensor
    spread: Tensor

    def __init__(self, how: Finetune, backbone: "Backbone") -> None:
        super().__init__(how)
        holds = bool(how.anchor or how.relational)
        self.before = copy.deepcopy(backbone).requires_grad_(False).eval() if holds else None
        # A resolution that no term names is not computed.
        self.sides = [side for side in "hl" if holds or any(side in term for term in how.terms)]
        self.register_buffer("margin", torch.tensor(how.triplet_margin or float("nan"), dtype=torch.float64))
        self.crowd = Ring(CROWD, backbone.embedding_dim) if how.relational else None
        self.register_buffer("spread", torch.tensor(float("nan"), dtype=torch.float64))

    def start(self, features: Tensor, labels: Tensor) -> None:
        if self.how.triplet_margin is None:
            self.margin.fill_(margin_for(features, self.how.distance, self.how.normalise))
        if self.crowd is not None:
            self.spread.fill_((features - features.mean(0)).square().sum(1).mean())
            self.crowd.push(features, labels)

    def see(self, images: Tensor, draws: Tensor) -> list[Tensor]:
        high = augment.jitter(augment.flip(images, draws), draws, 0.2)
        low = []
        if "l" in self.sides:
            low = [
                augment.low_resolution(high, augment.mixed_px(draws, self.how.sizes, copy))
                for copy in range(self.how.copies)
            ]
        return [high, *low] if "h" in self.sides else low

    def forward(self, features: list[Tensor], labels: Tensor, views: list[Tensor]) -> dict[str, Tensor]:
        everyone, how, losses = [gather(view) for view in features], self.how, dict[str, Tensor]()
        labels = gather(labels)
        seen = torch.ones_like(labels, dtype=torch.bool) if how.singles else labels >= 0
        # Where a resolution is not computed, the other one stands in its place: no term reads it.
        low = everyone[1:] if len(self.sides) == 2 else everyone
        for one in low:
            terms = octuplet_loss(
                everyone[0][seen], one[seen], labels[seen], margin=float(self.margin), terms=how.terms,
                distance=how.distance, normalise=how.normalise,
            )  # fmt: skip
            losses = {name: losses.get(name, 0) + value / len(low) for name, value in terms.items()}
        if self.before is not None:
            with torch.no_grad(), self.autocast():
                held = gather(self.before.eval()(views[0]).float())
            if how.anchor:
                losses["anchor"] = how.anchor * _both([(view - held).norm(dim=1).mean() for view in everyone])
            if self.crowd is not None:
                self.crowd.push(held, labels)
                others = self.crowd.features[: int(self.crowd.filled)].clone()
                parts = [relational_anchor(view, held.to(view), others, float(self.spread)) for view in everyone]
                losses["relational"] = how.relational * _both(parts)
        return losses


def _both(views: list[Tensor]) -> Tensor:
    """The full-size view's loss and the mean one of its low-resolution copies."""
    return views[0] + torch.stack(views[1:]).mean()
