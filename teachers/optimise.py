"""Optimisers of a fine-tuning: rates, groups, sparse heads, averaged weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from teachers.settings import Finetune


def rate_at(step: int, how: Finetune) -> float:
    """Share of the learning rate: a linear warm-up, then linearly to zero (polynomial of power 1)."""
    warmup = max(1, round(how.warmup * how.steps))
    return min((step + 1) / warmup, (how.steps - step) / max(1, how.steps - warmup), 1.0)


def create_optimiser(parameters: list[nn.Parameter], how: Finetune) -> torch.optim.Optimizer:
    groups = [
        {
            "params": [parameter],
            "weight_decay": how.weight_decay if parameter.dim() > 1 else 0.0,
            "size": max(1e-3, float(parameter.detach().square().mean().sqrt())) if how.relative else 1.0,
        }
        for parameter in parameters
    ]
    if how.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=how.lr, momentum=0.9)
    if how.optimiser == "adagrad":
        return torch.optim.Adagrad(groups, lr=how.lr, eps=1.0)
    return torch.optim.AdamW(groups, lr=how.lr)


def create_head_optimiser(parameters: list[nn.Parameter], how: Finetune) -> torch.optim.Optimizer:
    if how.sample_rate < 1:
        # Sampled class weights have sparse gradients, which AdamW refuses, and to which none adds a weight decay.
        if how.optimiser == "adamw":
            return torch.optim.SparseAdam([{"params": parameters, "size": 1.0}], lr=how.lr)
        how = replace(how, weight_decay=0.0)
    return create_optimiser(parameters, how)


class Average(nn.Module):
    """The weights that a fine-tuning ends with: a moving average of the trained ones, corrected for its start as
    Adam's moments are, and drawn back towards those before the first step (`interpolate` in `teachers.settings`).

    torch.optim.swa_utils keeps a whole copy of the model, frozen weights and queues included; this keeps what trains.
    """

    count: Tensor

    def __init__(self, model: nn.Module, decay: float, interpolate: float = 1.0) -> None:
        super().__init__()
        self.decay, self.interpolate = decay, interpolate
        # A run that is continued begins with the same weights again, before it reads its checkpoint.
        self.start = [parameter.detach().clone() for parameter in trained(model)] if interpolate < 1 else []
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        if decay:
            for i, parameter in enumerate(trained(model)):
                self.register_buffer(f"p{i}", torch.zeros_like(parameter.detach()))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.count += 1
        for i, parameter in enumerate(trained(model) if self.decay else ()):
            self.get_buffer(f"p{i}").lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def put(self, model: nn.Module) -> list[Tensor]:
        """Write the weights into the model; returns what was there."""
        before = [parameter.detach().clone() for parameter in trained(model)]
        if self.count:
            for i, parameter in enumerate(trained(model)):
                if self.decay:
                    parameter.copy_(self.get_buffer(f"p{i}") / (1 - self.decay ** int(self.count)))
                if self.start:
                    parameter.copy_(self.start[i].lerp(parameter, self.interpolate))
        return before

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        before = self.put(model)
        yield
        with torch.no_grad():
            for parameter, old in zip(trained(model), before, strict=True):
                parameter.copy_(old)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
