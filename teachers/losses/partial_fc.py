"""A margin head whose classes are divided among the processes, for more identities than one can hold.

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by
Partial FC", 2022. No process ever holds another's proxies or logits.
"""

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from faces.distributed import gather, rank, world_size
from faces.errors import UserError
from faces.losses.margin import safe_acos

KINDS = ("cosface", "arcface")
_FLOAT32 = 4
_NOT_HERE = -1


class _Enlarge(torch.autograd.Function):
    """x as it is; its gradient times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class _DistributedCrossEntropy(torch.autograd.Function):
    """Cross-entropy (B,) of logits (B, own classes) of which each rank holds some columns.

    target: (B,), a column here or -1: each row has its target on exactly one rank. The backward pass talks to
    nobody: each rank's gradient is that of its own columns.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        rows, columns = logits.shape
        largest = logits.amax(1) if columns else logits.new_full((rows,), -torch.inf)
        if world_size() > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        share = (logits - largest[:, None]).exp_()
        here = torch.nonzero(target != _NOT_HERE).squeeze(1)
        own = logits.new_zeros(rows)
        own[here] = logits[here, target[here]] - largest[here]
        both = torch.stack([share.sum(1), own])
        if world_size() > 1:
            dist.all_reduce(both)
        total, wanted = both
        share /= total[:, None]
        ctx.save_for_backward(share, target)
        return total.log() - wanted

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        share, target = ctx.saved_tensors
        here = torch.nonzero(target != _NOT_HERE).squeeze(1)
        out = share.clone()
        out[here, target[here]] -= 1
        return out.mul_(gradient[:, None]), None


class PartialFC(nn.Module):
    """CosFace or ArcFace over classes of which each rank holds ceil(classes / world_size); the last one the rest.

    `forward(features (B, D), labels (B,))`: a rank's own batch, B the same on all. Gives the mean loss of the
    global batch, a scalar, the same on every rank; its gradient follows the convention of
    `faces.distributed`. Not to be wrapped in DDP.

    sample_rate in (0, 1]: the share of a rank's proxies that takes part in a step: the batch's own identities
    and others drawn at random. Below 1 the gradient is sparse, and with torch.optim.SparseAdam exactly the
    proxies that took part are updated (AdamW refuses it). In evaluation mode all take part.

    `proxies` are this rank's, of the classes [first, first + len(proxies)), and so is the state dict: resume
    with the same number of processes.
    Raises UserError on an unknown kind, a sample rate outside (0, 1] or fewer than one class.
    """

    def __init__(
        self,
        embedding_dim: int,
        classes: int,
        margin: float = 0.4,
        scale: float = 64.0,
        kind: str = "cosface",
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"unknown kind {kind!r} of partial head: choose cosface or arcface")
        if not 0 < sample_rate <= 1:
            raise UserError(f"sample rate {sample_rate}: choose a share above 0 and up to 1")
        if classes < 1:
            raise UserError("a head needs at least one class")
        self.margin, self.scale, self.kind, self.sample_rate = margin, scale, kind, sample_rate
        share = math.ceil(classes / world_size())
        self.first = min(rank() * share, classes)
        rows = min(self.first + share, classes) - self.first
        # Ranks that were seeded alike must not start with alike proxies.
        seed = int(torch.randint(2**31, ())) + rank()
        self.weight = nn.Parameter(torch.randn(rows, embedding_dim, generator=torch.Generator().manual_seed(seed)))

    @property
    def proxies(self) -> Tensor:
        """This rank's weight vectors, (own classes, D): the parameter itself."""
        return self.weight

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            # A rank's loss reaches the features through its own classes only: the ranks' sum is the true
            # gradient, and DDP's mean would divide it once more.
            features = gather(_Enlarge.apply(features.to(self.weight.dtype), world_size()))
            target = gather(labels) - self.first
            target = torch.where((target >= 0) & (target < len(self.weight)), target, _NOT_HERE)
            weight: Tensor = self.weight
            if self.sample_rate < 1 and self.training:
                chosen, target = self._sample(target)
                weight = F.embedding(chosen, self.weight, sparse=True)
            cosine = F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T
            here = torch.nonzero(target != _NOT_HERE).squeeze(1)
            column = target[here]
            cosine = cosine.index_put((here, column), self._with_margin(cosine[here, column]))
            return cast(Tensor, _DistributedCrossEntropy.apply(self.scale * cosine, target)).mean()

    def _with_margin(self, cosine: Tensor) -> Tensor:
        """The targets' cosines (n,) as `create_margin`'s heads change them."""
        if self.kind == "cosface":
            return cosine - self.margin
        angle = safe_acos(cosine)
        beyond = angle.cos() - self.margin * math.sin(self.margin)
        return torch.where(angle <= math.pi - self.margin, (angle + self.margin).cos(), beyond)

    @torch.no_grad()
    def _sample(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that take part, sorted, and the targets counted among them."""
        own = target[target != _NOT_HERE].unique()
        count = max(int(self.sample_rate * len(self.weight)), len(own))
        luck = torch.rand(len(self.weight), device=target.device)
        luck[own] = 2
        chosen = luck.topk(count).indices.sort().values
        place = torch.searchsorted(chosen, target.clamp_min(0))
        return chosen, torch.where(target != _NOT_HERE, place, _NOT_HERE)


def memory_per_rank(
    classes: int, dim: int, world: int, batch: int, sample_rate: float = 1.0, optimiser_states: int = 2
) -> int:
    """Bytes that the head takes on one rank, by arithmetic; batch: images on all ranks together.

    Held: proxies and optimiser states, float32. In a step, for the proxies that take part: their copy (if
    sampled), lengthened to 1, and their gradient twice (before and behind the normalisation); the gathered
    features thrice (raw, normalised, gradient); four float32 matrices of images by proxies (cosines, logits,
    softmax, gradient). No copies that an allocator or a matrix product makes.
    """
    own = math.ceil(classes / world)
    taking_part = own if sample_rate == 1 else max(int(sample_rate * own), min(batch, own))
    held = own * dim * (1 + optimiser_states)
    step = taking_part * dim * (3 if sample_rate == 1 else 4) + 3 * batch * dim + 4 * batch * taking_part
    return _FLOAT32 * (held + step)
