"""The library's heads against the papers' formulas in float64: what margin and scale mean."""

import math

import pytest
import torch
from torch import Tensor

from faces.errors import UserError
from faces.losses.margin import DEFAULTS, create_margin, safe_acos

BATCH, WIDTH, CLASSES = 6, 5, 4
LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


def _head(name: str, **given: float):
    torch.manual_seed(0)
    return create_margin(name, WIDTH, CLASSES, **given).double()


def _features() -> Tensor:
    torch.manual_seed(4)
    return (torch.randn(BATCH, WIDTH, dtype=torch.float64) * 3).requires_grad_()


def _naive(name: str, features: Tensor, weights: Tensor, margin: float, scale: float) -> Tensor:
    losses = []
    for x, label in zip(features, LABELS.tolist(), strict=True):
        logits = []
        for j, w in enumerate(weights):
            norm = (x @ x).sqrt()
            cosine = (x @ w) / (norm * (w @ w).sqrt())
            if j == label:
                angle = torch.acos(cosine)
                if name == "cosface":
                    cosine = cosine - margin
                elif name == "arcface":
                    within = float(angle.detach()) <= math.pi - margin
                    cosine = torch.cos(angle + margin) if within else cosine - margin * math.sin(margin)
                else:
                    k = math.floor(float(angle.detach()) * margin / math.pi)
                    cosine = (-1) ** k * torch.cos(margin * angle) - 2 * k
            logits.append(scale * cosine * (norm if name == "sphereface" else 1))
        logits = torch.stack(logits)
        losses.append(-torch.log(torch.exp(logits[label]) / torch.exp(logits).sum()))
    return torch.stack(losses)


@pytest.mark.parametrize("name", ["sphereface", "cosface", "arcface"])
@pytest.mark.parametrize("given", [{}, {"margin": 2.0, "scale": 8.0}])
def test_value_and_gradient(name: str, given: dict[str, float]) -> None:
    head, features = _head(name, **given), _features()
    margin, scale = given.get("margin", DEFAULTS[name][0]), given.get("scale", DEFAULTS[name][1])
    losses = head(features, LABELS)
    assert losses.shape == (BATCH,)
    weights = head.proxies.detach().clone().requires_grad_()
    naive = _naive(name, features, weights, margin, scale)
    torch.testing.assert_close(losses, naive)
    mix = torch.arange(1.0, BATCH + 1)
    mine = torch.autograd.grad((losses * mix).sum(), [features, head.loss.W])
    theirs = torch.autograd.grad((naive * mix).sum(), [features, weights])
    torch.testing.assert_close(mine[0], theirs[0])
    torch.testing.assert_close(mine[1].T, theirs[1])


def test_the_defaults() -> None:
    assert DEFAULTS["cosface"] == (0.4, 64.0)
    assert DEFAULTS["arcface"] == (0.5, 64.0)
    assert _head("arcface").loss.margin == pytest.approx(0.5)


def test_softmax_is_a_linear_layer() -> None:
    head, features = _head("softmax"), _features()
    logits = features @ head.proxies.T + head.linear.bias
    for row, label, loss in zip(logits, LABELS, head(features, LABELS), strict=True):
        torch.testing.assert_close(loss, -row[label] + torch.log(torch.exp(row).sum()))
    assert torch.autograd.gradcheck(lambda x: head(x, LABELS), (features,))


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_proxies_can_be_set(name: str) -> None:
    head, wanted = _head(name), torch.randn(CLASSES, WIDTH, dtype=torch.float64)
    before = head(_features(), LABELS)
    head.set_proxies(wanted)
    assert torch.equal(head.proxies, wanted)
    assert head.proxies.shape == (CLASSES, WIDTH)
    assert not torch.allclose(before, head(_features(), LABELS))


@pytest.mark.parametrize("name", ["sphereface", "cosface", "arcface"])
def test_a_feature_on_its_proxy_has_a_gradient_that_is_a_number(name: str) -> None:
    head = create_margin(name, WIDTH, CLASSES)
    # Along an axis the cosine is 1 to the last bit.
    head.set_proxies(torch.eye(CLASSES, WIDTH))
    features = (head.proxies[LABELS].detach() * torch.tensor([[1.0, 1, 1, -1, 2, 1]]).T).requires_grad_()
    head(features, LABELS).sum().backward()
    assert torch.isfinite(features.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


def test_angles_keep_away_from_where_acos_has_no_gradient() -> None:
    for angles in (safe_acos, create_margin("arcface", WIDTH, CLASSES).loss.get_angles):
        cosine = torch.tensor([1.0, -1.0, 0.5], requires_grad=True)
        angle = angles(cosine)
        assert 0 < float(angle[0].detach()) < 1e-3
        torch.testing.assert_close(angle[1:], torch.tensor([math.pi, math.pi / 3]), rtol=0, atol=1e-3)
        angle.sum().backward()
        assert torch.isfinite(cosine.grad).all()
        assert cosine.grad[2] == pytest.approx(-1 / math.sin(math.pi / 3))


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_half_precision_features_leave_the_weights_alone(name: str) -> None:
    head = create_margin(name, WIDTH, CLASSES)
    features = _features().detach().bfloat16()
    expected = head(features.float(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head(features, LABELS)
    assert torch.equal(losses, expected)
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}


def test_mistakes() -> None:
    with pytest.raises(UserError, match="softmax, sphereface, cosface, arcface"):
        create_margin("magface", 2, 2)
    with pytest.raises(UserError, match="neither margin nor scale"):
        create_margin("softmax", 2, 2, margin=0.4)
    with pytest.raises(UserError, match="whole number"):
        create_margin("sphereface", 2, 2, margin=0.4)
