"""The optimisers of a student's training, and their rates over the steps."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler

from faces.errors import UserError
from students.batches import Recipe

MUON_RATE = 3.0
"""Muon's rate as a multiple of `Recipe.lr`, which AdamW has beside it."""


def create_optimiser(student: nn.Module, heads: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """The optimiser of both networks, and its schedule: a linear warm-up, then linearly to zero; the paper's sgd has
    a constant rate. Vectors do not decay. UserError: muon without timm."""
    matrices = [p for module in (student, heads) for p in module.parameters() if p.dim() > 1]
    vectors = [p for module in (student, heads) for p in module.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if recipe.optimiser == "sgd":
        # The paper: stochastic gradient descent, learning rate .001; momentum is not stated there.
        optimiser: torch.optim.Optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
        return optimiser, ConstantLR(optimiser, 1.0)
    if recipe.optimiser == "muon":
        optimiser = _muon(student, groups, recipe)
    else:
        optimiser = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    warmup = max(1, round(recipe.warmup * recipe.steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, (recipe.steps - step) / max(1, recipe.steps - warmup), 1.0)

    return optimiser, LambdaLR(optimiser, factor)


def _muon(student: nn.Module, groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for the student's kernels and matrices behind the stem, each kernel (O, I, k, k) as an
    (O, I k k) matrix; AdamW for all else."""
    try:
        from timm.optim.muon import Muon
    except ImportError:
        raise UserError("distill.optimiser=muon needs a package: pip install 'bridgeface[timm]'") from None
    hidden = [p for name, p in student.named_parameters() if p.dim() > 1 and not name.startswith("stem.")]
    chosen = {id(p) for p in hidden}
    rest = [
        {
            **group,
            "params": [p for p in group["params"] if id(p) not in chosen],
            "use_fallback": True,
            "nesterov": False,
        }
        for group in groups
    ]
    # A step's decay is rate times weight_decay: as large for these as for AdamW's.
    by_muon = {"params": hidden, "weight_decay": recipe.weight_decay / MUON_RATE, "lr": MUON_RATE * recipe.lr}
    return Muon(
        [*rest, by_muon], lr=recipe.lr, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw", betas=(0.9, 0.999)
    )
