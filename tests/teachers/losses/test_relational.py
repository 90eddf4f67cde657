"""The relational anchor against a loop in float64, and against the students' loss of unit features."""

import math

import pytest
import torch
from torch.nn import functional as F

from students.losses import relational
from teachers.losses.relational import relational_anchor


def _batch(faces: int = 5, others: int = 9, width: int = 4):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * faces + others, width, dtype=torch.float64, generator=generator)
    features, held, crowd = rows.split([faces, faces, others])
    return features.clone().requires_grad_(), held, torch.cat([crowd, held])


def _naive(features, held, others, spread, temperature):
    def shares(x):
        logits = [-temperature * ((x - other) ** 2).sum() / (2 * spread) for other in others]
        total = sum(math.e**logit for logit in logits)
        return [math.e**logit / total for logit in logits]

    losses = []
    for feature, before in zip(features, held, strict=True):
        pairs = zip(shares(before), shares(feature), strict=True)
        losses.append(sum(p * (p.log() - q.log()) for p, q in pairs))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("spread", "temperature"), [(4.0, 10.0), (2.5, 1.0)])
def test_value_and_gradient(spread, temperature) -> None:
    features, held, others = _batch()
    found = relational_anchor(features, held, others, spread, temperature)
    expected = _naive(features, held, others, spread, temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    own, naive = (torch.autograd.grad(loss, features)[0] for loss in (found, expected))
    assert torch.allclose(own, naive, rtol=1e-9, atol=1e-12)
    assert own.abs().max() > 1e-3


def test_where_it_was_a_feature_costs_nothing() -> None:
    _, held, others = _batch()
    there = held.clone().requires_grad_()
    loss = relational_anchor(there, held, others, 4.0)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, there)[0].abs().max() < 1e-12


def test_of_unit_features_it_is_the_students_loss_less_its_floor() -> None:
    features, held, _ = (F.normalize(x.detach()) for x in _batch())
    floor = relational(held, held)
    found = relational_anchor(features, held, held, spread=1.0)
    assert float(found) == pytest.approx(float(relational(features, held) - floor), rel=1e-9)
