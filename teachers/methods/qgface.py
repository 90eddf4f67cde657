"""QGFace: classification for images of high quality, comparison with other images for those of low quality."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from faces.distributed import gather
from faces.errors import UserError
from teachers import augment
from teachers.losses.adaface import AdaFace
from teachers.losses.contrastive import contrastive_loss, pair_gate, quality_gate
from teachers.losses.queues import MomentumQueue, create_pool
from teachers.methods.base import Method
from teachers.methods.full import create_head, start_centre, start_proxies
from teachers.settings import Finetune

if TYPE_CHECKING:
    from teachers.backbones import Backbone

_AUGMENTATIONS = {"adaface": augment.adaface, "ours": augment.qgface}


class QGFace(Method):
    """Song et al. 2024: each face is seen as it is (the key) and augmented (the query).

    With `both_views=false` it is seen augmented alone: the baseline and the settings A, B and D of the paper's
    Table I are AdaFace on such images, with `partition` those of low quality left out of the loss.
    """

    def __init__(self, how: Finetune, embedding_dim: int, classes: int, backbone: "Backbone") -> None:
        super().__init__(how)
        if how.head != "adaface" or how.sample_rate < 1:
            raise UserError("qgface learns quality from AdaFace's norms: set head=adaface, sample_rate=1")
        self.centre = torch.zeros(embedding_dim)
        head = create_head(how, embedding_dim, classes)
        assert isinstance(head, AdaFace)
        self.head = head
        self.views = 2 if how.both_views else 1
        contrastive = how.contrastive if how.both_views else "none"
        # The paper's queue is as long as there are identities.
        self.pool = create_pool(contrastive, classes, embedding_dim, backbone)

    def start(self, features: Tensor, labels: Tensor) -> None:
        self.centre = start_centre(features, self.how)
        start_proxies(self.head, features - self.centre, labels, self.how)

    def see(self, images: Tensor, draws: Tensor) -> list[Tensor]:
        images = augment.flip(images, draws)
        change = _AUGMENTATIONS.get(self.how.augmentation)
        augmented = images if change is None else change(images, draws)
        return [augmented] if self.views == 1 else [augmented, images]

    def forward(self, features: list[Tensor], labels: Tensor, views: list[Tensor]) -> dict[str, Tensor]:
        features = self.centred(features)
        everyone = [gather(view) for view in features]
        labels = gather(labels)
        both = torch.cat(everyone)
        zhat = self.head.statistics(both.norm(dim=1))
        high = quality_gate(zhat, self.how.gate if self.how.partition else None)
        per_image = self.head(both, labels.repeat(self.views), zhat)
        # Equation 3: an image of low quality has loss 0, and still counts in the mean.
        losses = {"class": (per_image * high).mean(), "high_share": high.float().mean().detach()}
        if self.pool is not None:
            losses["contrastive"] = self._contrast(features, everyone, labels, zhat, views)
        return losses

    def _contrast(
        self, mine: list[Tensor], everyone: list[Tensor], labels: Tensor, zhat: Tensor, views: list[Tensor]
    ) -> Tensor:
        assert self.pool is not None
        query_zhat, key_zhat = zhat.chunk(2)
        low = pair_gate(query_zhat, key_zhat, self.how.gate if self.how.partition else None)
        kept = list(self.pool.views(*mine, *views))
        if isinstance(self.pool, MomentumQueue):
            # Its encoder gives plain features; the others give `mine` again.
            kept = self.centred(kept)
        query, key = (gather(view) for view in kept)
        proxies = self.head.proxies.detach()
        per_pair = contrastive_loss(everyone[0], key, labels, *self.pool.negatives(query, key, labels, proxies))
        self.pool.enqueue(query, key, labels, proxies)
        return self.how.contrastive_weight * (per_pair * low).mean()

    def follow(self, backbone: nn.Module) -> None:
        if self.pool is not None:
            self.pool.follow(backbone)
