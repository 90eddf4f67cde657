"""Full fine-tuning with a margin loss: the baseline that forgets."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faces.distributed import gather
from faces.errors import UserError
from faces.losses.center import CenterLoss
from faces.losses.margin import create_margin
from teachers import augment
from teachers.losses.adaface import AdaFace
from teachers.losses.partial_fc import PartialFC
from teachers.methods.base import Method
from teachers.settings import Finetune


class Full(Method):
    """A margin loss over the public identities, on faces of which a share is seen at low resolution."""

    def __init__(self, how: Finetune, embedding_dim: int, classes: int) -> None:
        super().__init__(how)
        self.centre = torch.zeros(embedding_dim)
        self.head = create_head(how, embedding_dim, classes)
        self.center = CenterLoss(embedding_dim, classes) if how.center else None

    def start(self, features: Tensor, labels: Tensor) -> None:
        self.centre = start_centre(features, self.how)
        start_proxies(self.head, features - self.centre, labels, self.how)

    def see(self, images: Tensor, draws: Tensor) -> list[Tensor]:
        how = self.how
        px = augment.random_px(draws, how.low_share, *how.low_px, images.shape[-1])
        return [augment.low_resolution(augment.flip(images, draws), px)]

    def forward(self, features: list[Tensor], labels: Tensor, views: list[Tensor]) -> dict[str, Tensor]:
        (mine,) = self.centred(features)
        if isinstance(self.head, PartialFC):
            losses = {"class": self.head(mine, labels)}
        else:
            losses = {"class": self.head(gather(mine), gather(labels)).mean()}
        if self.center is not None:
            losses["center"] = self.how.center * self.center(gather(mine), gather(labels)).mean()
        return losses


def create_head(how: Finetune, embedding_dim: int, classes: int) -> nn.Module:
    """The margin loss that `how.head` names, with its class weights."""
    if how.sample_rate < 1:
        if how.head not in ("cosface", "arcface"):
            raise UserError(f"sampled class weights (sample_rate < 1) know cosface and arcface, not {how.head}")
        default = {"cosface": 0.4, "arcface": 0.5}[how.head]
        margin = default if how.margin is None else how.margin
        return PartialFC(embedding_dim, classes, margin, how.scale or 64.0, how.head, how.sample_rate)
    if how.head == "adaface":
        return AdaFace(embedding_dim, classes, 0.4 if how.margin is None else how.margin, how.scale or 64.0)
    return create_margin(how.head, embedding_dim, classes, how.margin, how.scale)


def start_centre(features: Tensor, how: Finetune) -> Tensor:
    """The middle of a trained teacher's features, (D,): what all faces share makes every cosine large, as in dlib's
    network, which was trained by distances. Near 0 where cosines were trained; 0 for random weights."""
    return features.median(0).values if how.head_from == "means" else torch.zeros_like(features[0])


@torch.no_grad()
def start_proxies(head: nn.Module, features: Tensor, labels: Tensor, how: Finetune) -> None:
    """Class weights at each person's mean direction: a random head would first pull the backbone at random.

    People without a sample face keep their random weight. The published trainings start at random, with a warm-up
    that a short fine-tuning has no time for.
    """
    if how.head_from == "random" or isinstance(head, PartialFC):
        return
    proxies = head.proxies
    assert isinstance(proxies, Tensor)
    unit = F.normalize(features)
    sums = torch.zeros_like(proxies).index_add_(0, labels, unit.to(proxies))
    known = sums.norm(dim=1) > 0
    # A loss that normalises its weights does not mind their length; the plain softmax gets the features' own.
    length = features.norm(dim=1).mean() if how.head == "softmax" else proxies.norm(dim=1).mean()
    proxies.copy_(torch.where(known[:, None], F.normalize(sums) * length, proxies))
