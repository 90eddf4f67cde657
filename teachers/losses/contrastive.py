"""QGFace: images of low quality learn by comparison with other images, not with the classes' weights.

Wang et al., "QGFace: Quality-Guided Joint Training For Mixed-Quality Face Recognition", 2024, equations 2-4,
13 and 14. A step with a pool of `teachers.losses.queues`:

    views = pool.views(query, key, query_images, key_images)     # then gathered over the ranks
    losses = contrastive_loss(query, views[1], labels, *pool.negatives(*views, labels, proxies))
    pool.enqueue(*views, labels, proxies)
    pool.follow(encoder)                                         # behind the optimiser's step
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from teachers.losses.queues import NOBODY, create_pool

__all__ = ["contrastive_loss", "create_pool", "pair_gate", "quality_gate"]


def quality_gate(zhat: Tensor, threshold: float | None = 0.2) -> Tensor:
    """Which images are of high quality, any shape: (zhat + 1) / 2 above the threshold. zhat in [-1, 1].

    They, and only they, have a classification loss (equation 3). None: no parting, True for all.
    """
    if threshold is None:
        return torch.ones_like(zhat, dtype=torch.bool)
    return (zhat + 1) / 2 > threshold


def pair_gate(query_zhat: Tensor, key_zhat: Tensor, threshold: float | None = 0.2) -> Tensor:
    """Which pairs have a contrastive loss: the lower quality of the two is not high (equations 2 and 4).

    None: no parting, True for all.
    """
    if threshold is None:
        return torch.ones_like(query_zhat, dtype=torch.bool)
    return ~quality_gate(torch.minimum(query_zhat, key_zhat), threshold)


def contrastive_loss(
    query: Tensor, key: Tensor, labels: Tensor, negatives: Tensor, identities: Tensor, scale: float = 64.0
) -> Tensor:
    """Losses (B,), each pair's; the caller gates and averages. Gradient flows to the queries alone.

    query, key: (B, D), two views of one image; labels: (B,); negatives: (Q, D); identities: (Q,), those of the
    negatives, -1 for an empty slot. Negatives of a query's identity do not count. Equation 14 as printed
    leaves the positive out of the denominator; as in the published code it is in it.
    """
    with torch.autocast(query.device.type, enabled=False):
        if query.dtype in (torch.float16, torch.bfloat16):
            query = query.float()
        query = F.normalize(query, dim=1)
        key, negatives = F.normalize(key.detach().to(query), dim=1), F.normalize(negatives.detach().to(query), dim=1)
        masked = (labels[:, None] == identities) | (identities == NOBODY)
        others = (query @ negatives.T).masked_fill(masked, -torch.inf)
        logits = scale * torch.cat([(query * key).sum(1, keepdim=True), others], 1)
        return logits.logsumexp(1) - logits[:, 0]
