"""The two mimic losses against loops in float64."""

import math

import pytest
import torch

from students.losses import LOSSES, regression, relational


def _features(batch=7, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, target = torch.randn(2, batch, width, dtype=torch.float64, generator=generator)
    return (student * 3).requires_grad_(), target * 0.5


def _naive_regression(student, target):
    total = 0.0
    for a, y in zip(student, target, strict=True):
        for p, q in zip(a, y, strict=True):
            total = total + (p - q) ** 2
    return total / len(student)


def _naive_relational(student, target, temperature):
    def unit(row):
        return row / sum(value**2 for value in row) ** 0.5

    a, y = [unit(row) for row in student], [unit(row) for row in target]
    total = 0.0
    for i in range(len(a)):
        teacher = [math.exp(temperature * float(sum(y[i] * other))) for other in y]
        own = [torch.exp(temperature * sum(a[i] * other)) for other in y]
        for j in range(len(y)):
            total = total - teacher[j] / sum(teacher) * torch.log(own[j] / sum(own))
    return total / len(a)


@pytest.mark.parametrize("batch", [1, 7])
def test_regression_and_its_gradient(batch):
    student, target = _features(batch)
    loss, naive = regression(student, target), _naive_regression(student, target)
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(naive, student))
    assert regression(target, target) == 0


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_relational_and_its_gradient(batch, temperature):
    student, target = _features(batch)
    loss, naive = relational(student, target, temperature), _naive_relational(student, target, temperature)
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(naive, student))


def test_the_default_temperature_is_10():
    student, target = _features()
    assert relational(student, target) == relational(student, target, 10.0)
    assert set(LOSSES) == {"relational", "regression"}


def test_relational_is_least_at_the_target_where_it_is_the_teachers_entropy():
    _, target = _features()
    same = target.clone().requires_grad_()
    least = relational(same, target)
    unit = target / target.norm(dim=1, keepdim=True)
    share = (10 * unit @ unit.T).softmax(1)
    torch.testing.assert_close(least, -(share * share.log()).sum(1).mean())
    assert torch.autograd.grad(least, same)[0].abs().max() < 1e-12
    generator = torch.Generator().manual_seed(1)
    for strength in (0.01, 0.1, 1.0):
        noise = torch.randn(target.shape, dtype=torch.float64, generator=generator)
        assert relational(target + strength * noise, target) > least


def test_only_the_direction_counts_in_relational():
    student, target = _features()
    scale = torch.linspace(0.1, 9, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(relational(student * scale, target), relational(student, target))
    torch.testing.assert_close(relational(student, target * scale), relational(student, target))
    assert relational(-student, target) != relational(student, target)
    # A turn of both together changes nothing, so only the relations count.
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    torch.testing.assert_close(relational(student @ turn, target @ turn), relational(student, target))


def test_a_feature_of_zeros_gives_finite_gradients():
    student = torch.zeros(4, 8, requires_grad=True)
    target = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    relational(student, target).backward()
    assert torch.isfinite(student.grad).all()
