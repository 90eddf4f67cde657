"""Where QGFace's contrastive loss takes its negatives from: pools by name, with one interface."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from faces.errors import UserError

POOLS = ("proxy", "batch", "momentum", "none")
NOBODY = -1


class BatchNegatives(nn.Module):
    """The batch's own keys and queries: no state. Also the interface of the queues."""

    def views(self, query: Tensor, key: Tensor, query_images: Tensor, key_images: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, D) that stand for the two views in the pool; the second are the positives too."""
        return query.detach(), key.detach()

    def negatives(self, query: Tensor, key: Tensor, labels: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """Negatives (Q, D) and their identities (Q,), -1 where a slot is empty, without gradient.

        query, key: what `views` gave; labels: (B,); proxies: (classes, D), as they are now.
        """
        return torch.cat([query, key]).detach(), torch.cat([labels, labels])

    def enqueue(self, query: Tensor, key: Tensor, labels: Tensor, proxies: Tensor) -> None:
        """Remember both views of a batch, after its use."""

    def follow(self, encoder: nn.Module) -> None:
        """Note the encoder after a step of training."""


class Ring(BatchNegatives):
    """The last `size` features with their identities; all of it are buffers, so a state dict resumes it.

    features: (size, dim); identities: (size,), -1 where empty; pointer: the next slot; filled: slots in use.
    Raises UserError on a size below 1.
    """

    features: Tensor
    identities: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"a queue of {size} features holds nothing: set its size to 1 or more")
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("identities", torch.full((size,), NOBODY))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def negatives(self, query: Tensor, key: Tensor, labels: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor]:
        # Copies: the next batch overwrites the slots while a graph may still hold these.
        return self.features.clone(), self.identities.clone()

    @torch.no_grad()
    def enqueue(self, query: Tensor, key: Tensor, labels: Tensor, proxies: Tensor) -> None:
        self.push(torch.cat([query, key]), torch.cat([labels, labels]))

    def push(self, features: Tensor, identities: Tensor) -> tuple[Tensor, Tensor]:
        """Write the last of the features that fit; the slots and their identities. Waits for no GPU."""
        size = len(self.features)
        features, identities = features[-size:], identities[-size:]
        slots = (self.pointer + torch.arange(len(features), device=features.device)) % size
        self.features[slots] = features.to(self.features)
        self.identities[slots] = identities
        self.pointer.copy_((self.pointer + len(features)) % size)
        self.filled.copy_((self.filled + len(features)).clamp_max(size))
        return slots, identities


class ProxyQueue(Ring):
    """Features that move as their identities' proxies have moved since (QGFace, section III-C).

    A feature f of a time when its proxy was W counts as f + |f| / |W| * (W_now - W). The paper's size is the
    number of identities. A further buffer: proxies (size, dim), those of that time.
    """

    proxies: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(size, dim)
        self.register_buffer("proxies", torch.zeros(size, dim))

    @torch.no_grad()
    def negatives(self, query: Tensor, key: Tensor, labels: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor]:
        now = proxies[self.identities.clamp_min(0)].to(self.proxies)
        ratio = self.features.norm(dim=1, keepdim=True) / self.proxies.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return self.features + ratio * (now - self.proxies), self.identities.clone()

    @torch.no_grad()
    def enqueue(self, query: Tensor, key: Tensor, labels: Tensor, proxies: Tensor) -> None:
        slots, identities = self.push(torch.cat([query, key]), torch.cat([labels, labels]))
        self.proxies[slots] = proxies[identities].to(self.proxies)


class MomentumQueue(Ring):
    """Features of a slowly following copy of the encoder, which gives the positives too.

    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020. The copy's
    parameters keep `momentum` of themselves at each step; its buffers are the encoder's. It stays in
    evaluation mode, which leaves nothing for MoCo's shuffling over processes to do. The state dict holds it.
    """

    def __init__(self, size: int, dim: int, encoder: nn.Module, momentum: float = 0.999) -> None:
        super().__init__(size, dim)
        self.momentum = momentum
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def views(self, query: Tensor, key: Tensor, query_images: Tensor, key_images: Tensor) -> tuple[Tensor, Tensor]:
        # One after the other: whatever context holds for a batch of images (an alpha each) holds for both.
        return self.encoder(query_images), self.encoder(key_images)

    @torch.no_grad()
    def follow(self, encoder: nn.Module) -> None:
        for own, other in zip(self.encoder.parameters(), encoder.parameters(), strict=True):
            own.lerp_(other.to(own), 1 - self.momentum)
        for kept, buffer in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
            kept.copy_(buffer)


def create_pool(
    name: str, size: int, dim: int, encoder: nn.Module | None = None, momentum: float = 0.999
) -> BatchNegatives | None:
    """A pool by name: proxy, batch, momentum, none (None: no contrastive loss). size: the number of identities.

    encoder: what the momentum queue copies. Raises UserError on an unknown name, ValueError where momentum
    gets no encoder.
    """
    if name == "proxy":
        return ProxyQueue(size, dim)
    if name == "batch":
        return BatchNegatives()
    if name == "momentum":
        if encoder is None:
            raise ValueError("a momentum queue copies an encoder: give it one")
        return MomentumQueue(size, dim, encoder, momentum)
    if name == "none":
        return None
    raise UserError(f"unknown pool {name!r}: choose among {', '.join(POOLS)}")
