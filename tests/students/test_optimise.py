"""The optimisers against their formulas."""

import builtins

import numpy as np
import pytest
import torch
from few_faces import SHORT

from faces.errors import UserError
from students import create_student
from students.batches import Recipe
from students.heads import Heads
from students.optimise import MUON_RATE, create_optimiser

HOW = Recipe(samples=100 * 20, batch=20, optimiser="muon", lr=0.01, warmup=0.0, weight_decay=0.2)


def _one_step(how):
    torch.manual_seed(1)
    student, heads = create_student("tiny16"), Heads(5, 32)
    optimiser, _ = create_optimiser(student, heads, how)
    named = dict(student.named_parameters()) | {f"heads.{name}": p for name, p in heads.named_parameters()}
    before, random = {}, torch.Generator().manual_seed(0)
    for name, parameter in named.items():
        before[name] = parameter.detach().clone()
        parameter.grad = torch.randn(parameter.shape, generator=random)
    rates = [group["lr"] for group in optimiser.param_groups]
    optimiser.step()
    return named, before, rates


def test_muon_makes_the_update_of_a_hidden_kernel_orthogonal():
    named, before, rates = _one_step(HOW)
    assert rates == pytest.approx([HOW.lr, HOW.lr, MUON_RATE * HOW.lr])
    hidden = [name for name, p in named.items() if p.dim() > 1 and not name.startswith(("stem", "heads"))]
    assert len(hidden) == 9 + 3
    for name in hidden:
        kept = (1 - HOW.lr * HOW.weight_decay) * before[name]
        update = (kept - named[name].detach()).flatten(1) / (MUON_RATE * HOW.lr)
        # Five iterations leave singular values of about .7 to 1.2 (a square matrix's least ones stay below); the rms
        # of an entry is then about .2, as AdamW's.
        values = np.linalg.svd(update.numpy(), compute_uv=False) / (0.2 * max(update.shape) ** 0.5)
        assert np.quantile(values, 0.05) > 0.5, name
        assert values.max() < 1.35, name
        assert 0.1 < update.square().mean().sqrt() < 0.26
    assert torch.nn.functional.cosine_similarity(
        -(named["fc1.weight"] - before["fc1.weight"]).flatten(), named["fc1.weight"].grad.flatten(), dim=0
    ) > 0.5  # fmt: skip


def test_all_else_moves_as_by_adamw():
    by_muon, before, _ = _one_step(HOW)
    by_adamw, *_ = _one_step(Recipe(samples=100 * 20, batch=20, lr=0.01, warmup=0.0, weight_decay=0.2))
    others = [name for name, p in by_muon.items() if p.dim() == 1 or name.startswith(("stem", "heads"))]
    assert {"stem.0.weight", "heads.widen.weight"} < set(others)
    for name in others:
        assert not torch.equal(by_muon[name], before[name])
        torch.testing.assert_close(by_muon[name], by_adamw[name], atol=1e-5, rtol=1e-5)


def test_muon_without_its_package_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("timm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"bridgeface\[timm\]"):
        create_optimiser(create_student("tiny16"), Heads(5, 0), HOW)
    create_optimiser(create_student("tiny16"), Heads(5, 0), SHORT)
