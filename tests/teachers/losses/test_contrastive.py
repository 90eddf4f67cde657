"""QGFace's gates and contrastive loss against loops in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teachers.losses.contrastive import contrastive_loss, pair_gate, quality_gate


def _unit(x: Tensor) -> Tensor:
    return x / (x @ x).sqrt()


def _naive(query: Tensor, key: Tensor, labels: Tensor, negatives: Tensor, identities: Tensor, scale: float) -> Tensor:
    losses = []
    for q, k, label in zip(query, key, labels.tolist(), strict=True):
        positive = torch.exp(scale * (_unit(q) @ _unit(k)))
        total = positive
        for n, identity in zip(negatives, identities.tolist(), strict=True):
            if identity not in (label, -1):
                total = total + torch.exp(scale * (_unit(q) @ _unit(n)))
        losses.append(-torch.log(positive / total))
    return torch.stack(losses)


def _pairs(batch: int, queue: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, batch, 5, dtype=torch.float64, generator=generator)
    negatives = torch.randn(queue, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (batch,), generator=generator)
    identities = torch.randint(-1, 3, (queue,), generator=generator)
    return query.requires_grad_(), key.requires_grad_(), labels, negatives.requires_grad_(), identities


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 12), st.integers(0, 1000), st.sampled_from([1.0, 10.0, 64.0]))
def test_value_and_gradient(batch: int, queue: int, seed: int, scale: float) -> None:
    query, key, labels, negatives, identities = _pairs(batch, queue, seed)
    losses = contrastive_loss(query, key, labels, negatives, identities, scale)
    assert losses.shape == (batch,)
    naive = _naive(query, key.detach(), labels, negatives.detach(), identities, scale)
    torch.testing.assert_close(losses, naive)
    mix = torch.arange(1.0, batch + 1)
    mine = torch.autograd.grad((losses * mix).sum(), [query, key, negatives], allow_unused=True)
    # Only the augmented view learns.
    assert mine[1] is None
    assert mine[2] is None
    torch.testing.assert_close(mine[0], torch.autograd.grad((naive * mix).sum(), query)[0])


def test_the_default_scale_is_64() -> None:
    pairs = _pairs(3, 6, 0)
    assert torch.equal(contrastive_loss(*pairs), contrastive_loss(*pairs, scale=64.0))


def test_without_other_peoples_faces_the_loss_is_zero() -> None:
    query, key, _, negatives, _ = _pairs(3, 4, 1)
    labels, identities = torch.tensor([2, 2, 2]), torch.tensor([2, 2, -1, -1])
    losses = contrastive_loss(query, key, labels, negatives, identities)
    assert torch.equal(losses, torch.zeros(3, dtype=torch.float64))
    losses.sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))


def test_half_precision() -> None:
    query, key, labels, negatives, identities = _pairs(3, 6, 2)
    halves = query.detach().bfloat16(), key.bfloat16(), labels, negatives.bfloat16(), identities
    with torch.autocast("cpu", torch.bfloat16):
        losses = contrastive_loss(*halves)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, contrastive_loss(*(part.float() for part in halves[:2]), *halves[2:]))


def test_the_gates() -> None:
    z = torch.tensor([-1.0, -0.61, -0.59, 0.0, 1.0])
    high = [False, False, True, True, True]
    assert quality_gate(z).tolist() == high
    # Strictly above.
    assert quality_gate(torch.tensor([0.0]), 0.5).tolist() == [False]
    assert quality_gate(z, None).tolist() == [True] * 5
    for i in range(5):
        low = pair_gate(z[i].expand(5), z)
        assert low.tolist() == [not (high[i] and other) for other in high]
        assert low.tolist() == pair_gate(z, z[i].expand(5)).tolist()
    assert pair_gate(z, z, None).tolist() == [True] * 5


def test_a_pair_of_low_quality_learns_by_comparison_and_its_key_by_nothing() -> None:
    query, key, labels, negatives, identities = _pairs(3, 6, 3)
    low = pair_gate(torch.tensor([0.5, -0.9, 0.5]), torch.tensor([0.5, 0.5, 0.5]))
    (contrastive_loss(query, key, labels, negatives, identities) * low).mean().backward()
    assert query.grad.abs().sum(1).gt(0).tolist() == [False, True, False]
    assert key.grad is None


@pytest.mark.parametrize("name", ["query", "negatives"])
def test_a_feature_of_zeros_is_no_nan(name: str) -> None:
    query, key, labels, negatives, identities = _pairs(3, 6, 4)
    with torch.no_grad():
        {"query": query, "negatives": negatives}[name][0] = 0
    contrastive_loss(query, key, labels, negatives, identities).sum().backward()
    assert torch.isfinite(query.grad).all()
