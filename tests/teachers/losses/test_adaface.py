"""AdaFace and its statistics against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teachers.losses.adaface import AdaFace, NormStatistics

BATCH, WIDTH, CLASSES = 6, 5, 4
LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


def _naive_statistics(batches: list[list[float]]) -> list[list[float]]:
    mean = std = None
    out = []
    for batch in batches:
        clipped = [min(max(norm, 0.001), 100.0) for norm in batch]
        own_mean = sum(clipped) / len(clipped)
        own_std = math.sqrt(sum((n - own_mean) ** 2 for n in clipped) / (len(clipped) - 1))
        mean = own_mean if mean is None else 0.01 * own_mean + 0.99 * mean
        std = own_std if std is None else 0.01 * own_std + 0.99 * std
        out.append([min(max((n - mean) / (std + 1e-3) * 0.333, -1), 1) for n in clipped])
    return out


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 200), min_size=2, max_size=6), min_size=1, max_size=4))
def test_statistics_start_with_the_first_batch_and_follow_slowly(batches: list[list[float]]) -> None:
    statistics = NormStatistics().double()
    for batch, wanted in zip(batches, _naive_statistics(batches), strict=True):
        norms = torch.tensor(batch, dtype=torch.float64, requires_grad=True)
        zhat = statistics(norms)
        assert not zhat.requires_grad
        assert zhat.abs().max() <= 1
        torch.testing.assert_close(zhat, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_the_first_batch_is_not_all_of_high_quality() -> None:
    zhat = NormStatistics()(torch.linspace(18, 26, 50))
    assert float(zhat.mean()) == pytest.approx(0, abs=1e-5)


def test_evaluation_does_not_move_the_statistics() -> None:
    statistics = NormStatistics().eval()
    norms = torch.tensor([10.0, 20.0, 30.0])
    # Before any training the batch stands for itself.
    assert float(statistics(norms)[1]) == pytest.approx(0)
    assert not statistics.started
    statistics.train()(norms)
    kept = {name: value.clone() for name, value in statistics.state_dict().items()}
    assert float(kept["mean"]) == pytest.approx(20)
    assert float(statistics.eval()(torch.tensor([100.0]))) == 1
    assert all(torch.equal(value, kept[name]) for name, value in statistics.state_dict().items())
    # A single image moves the mean, and leaves the spread.
    statistics.train()(torch.tensor([30.0]))
    assert float(statistics.mean) == pytest.approx(20.1)
    assert torch.equal(statistics.std, kept["std"])


def _naive(features: Tensor, weights: Tensor, zhat: Tensor, margin: float, scale: float) -> Tensor:
    losses = []
    for x, label, z in zip(features, LABELS.tolist(), zhat.tolist(), strict=True):
        logits = []
        for j, w in enumerate(weights):
            cosine = (x @ w) / ((x @ x).sqrt() * (w @ w).sqrt())
            if j == label:
                g_angle, g_add = -margin * z, margin * z + margin
                angle = torch.acos(cosine) + g_angle
                cosine = torch.cos(angle if 0 < float(angle.detach()) < math.pi else angle.detach().clamp(0, math.pi))
                cosine = cosine - g_add
            logits.append(scale * cosine)
        logits = torch.stack(logits)
        losses.append(-torch.log(torch.exp(logits[label]) / torch.exp(logits).sum()))
    return torch.stack(losses)


@pytest.mark.parametrize(("margin", "scale"), [(0.4, 64.0), (1.2, 5.0)])
@pytest.mark.parametrize("given_zhat", [False, True])
def test_value_and_gradient(margin: float, scale: float, given_zhat: bool) -> None:
    torch.manual_seed(0)
    head = AdaFace(WIDTH, CLASSES, margin, scale).double()
    features = torch.randn(BATCH, WIDTH, dtype=torch.float64) * 3
    # With zhat -1 and 1, angles that the margin would shift beyond pi and below 0.
    features[0], features[-1] = (
        features[0] * 0.01 - head.weight[0].detach(),
        features[-1] * 0.01 + head.weight[0].detach(),
    )
    features.requires_grad_()
    if given_zhat:
        zhat = torch.linspace(-1, 1, BATCH, dtype=torch.float64)
        losses = head(features, LABELS, zhat)
        assert not head.statistics.started
    else:
        losses = head(features, LABELS)
        zhat = torch.tensor(_naive_statistics([features.detach().norm(dim=1).tolist()])[0], dtype=torch.float64)
    assert losses.shape == (BATCH,)
    weights = head.proxies.detach().clone().requires_grad_()
    naive = _naive(features, weights, zhat, margin, scale)
    torch.testing.assert_close(losses, naive)
    mix = torch.arange(1.0, BATCH + 1)
    mine = torch.autograd.grad((losses * mix).sum(), [features, head.weight])
    theirs = torch.autograd.grad((naive * mix).sum(), [features, weights])
    torch.testing.assert_close(mine, theirs)


def test_quality_chooses_between_arcface_and_cosface() -> None:
    torch.manual_seed(0)
    head = AdaFace(WIDTH, CLASSES).double()
    features = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    cosine = (features / features.norm(dim=1, keepdim=True)) @ (head.weight / head.weight.norm(dim=1, keepdim=True)).T
    for z, target in ((-1.0, lambda c: math.cos(math.acos(c) + 0.4)), (0.0, lambda c: c - 0.4)):
        logits = cosine.detach().clone()
        for i, label in enumerate(LABELS.tolist()):
            logits[i, label] = target(float(logits[i, label]))
        expected = torch.nn.functional.cross_entropy(64 * logits, LABELS, reduction="none")
        torch.testing.assert_close(head(features, LABELS, torch.full((BATCH,), z)).detach(), expected)


def test_a_feature_on_its_proxy_and_half_precision() -> None:
    head = AdaFace(WIDTH, CLASSES)
    head.set_proxies(torch.eye(CLASSES, WIDTH))
    features = head.proxies[LABELS].detach().requires_grad_()
    head(features, LABELS).sum().backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(head.weight.grad).all()
    with torch.autocast("cpu", torch.bfloat16):
        losses = head(features.bfloat16(), LABELS, torch.zeros(BATCH))
    assert torch.equal(losses, head(features.bfloat16().float(), LABELS, torch.zeros(BATCH)))
    head.set_proxies(torch.ones(CLASSES, WIDTH))
    assert torch.equal(head.weight.detach(), torch.ones(CLASSES, WIDTH))
