"""The students' classification losses against loops in float64."""

import math
from typing import get_args

import pytest
import torch

from compress.config import Distill
from faces.losses.margin import create_margin
from students.heads import CENTER_WEIGHT, CLASS_LOSSES, ENERGY_WEIGHT, Heads, create_class_loss, energy

PEOPLE = 4
LABELS = torch.tensor([2, -1, 0, 2, -1, 3])
KNOWN = LABELS >= 0


def features():
    torch.manual_seed(1)
    return torch.randn(6, 128, dtype=torch.float64)


def loss_of(name):
    torch.manual_seed(0)
    return create_class_loss(name, PEOPLE).double()


@pytest.mark.parametrize("name", ["softmax", "cosface", "arcface"])
def test_the_published_heads_are_used_as_they_are(name):
    torch.manual_seed(0)
    head = create_margin(name, 128, PEOPLE).double()
    assert torch.equal(loss_of(name)(features(), LABELS)[KNOWN], head(features()[KNOWN], LABELS[KNOWN]))


def test_spherefaces_margin_grows_with_the_steps():
    torch.manual_seed(0)
    full, x, label = create_margin("sphereface", 128, PEOPLE).double(), features(), LABELS.clamp(min=0)
    loss = loss_of("sphereface")
    cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(full.proxies.detach()).T
    for steps in (0, 1, 1000, 10**6):
        loss.head.loss.steps.fill_(steps)
        share = max(5, 1000 / (1 + 0.12 * steps))
        for i in range(6):
            norm, mine = float(x[i].norm()), float(cosine[i, label[i]])
            k = int(math.acos(mine) * 4 / math.pi)
            psi = (-1) ** k * math.cos(4 * math.acos(mine)) - 2 * k
            logits = [norm * float(c) for c in cosine[i]]
            logits[label[i]] = norm * (share * mine + psi) / (1 + share)
            naive = -math.log(math.exp(logits[label[i]]) / sum(map(math.exp, logits)))
            assert loss.eval()(x, LABELS)[i].item() == pytest.approx(naive), steps
    assert loss.head.loss.steps == 10**6
    loss.train()(x, LABELS)
    assert loss.head.loss.steps == 10**6 + 1


def test_center_adds_the_distance_to_a_centre_that_only_labelled_faces_move():
    loss, softmax = loss_of("center"), loss_of("softmax")
    loss.center.centres.normal_()
    before, x = loss.center.centres.clone(), features()
    found, plain = loss(x, LABELS), softmax(x, LABELS)
    for i in range(6):
        if LABELS[i] >= 0:
            apart = sum((float(x[i, d]) - float(before[LABELS[i], d])) ** 2 for d in range(128)) / 2
            assert found[i].item() == pytest.approx(plain[i].item() + CENTER_WEIGHT * apart)
    assert torch.equal(loss.center.centres[1], before[1])
    for label, rows in ((0, [2]), (2, [0, 3]), (3, [5])):
        delta = sum((before[label] - x[i] for i in rows), torch.zeros(128, dtype=torch.float64))
        torch.testing.assert_close(loss.center.centres[label], before[label] - 0.5 * delta / (1 + len(rows)))


def test_the_energy_is_the_mean_of_inverse_squared_distances():
    torch.manual_seed(2)
    proxies = torch.randn(PEOPLE, 5, dtype=torch.float64)
    labels = torch.tensor([3, 0, 3])
    for label, found in zip(labels, energy(proxies, labels), strict=True):
        unit = [row / row.square().sum().sqrt() for row in proxies]
        others = [1 / float((unit[label] - unit[j]).square().sum()) for j in range(PEOPLE) if j != label]
        assert found.item() == pytest.approx(sum(others) / 3)
    assert energy(proxies[:1], torch.zeros(2, dtype=torch.int64)).tolist() == [0, 0]


def test_class_weights_of_one_direction_are_driven_apart():
    proxies = torch.ones(2, 3, requires_grad=True)
    with torch.no_grad():
        proxies[1, 0] += 0.1
    before = torch.nn.functional.cosine_similarity(*proxies.detach(), dim=0)
    for _ in range(50):
        value = energy(proxies, torch.tensor([0, 1])).sum()
        (gradient,) = torch.autograd.grad(value, proxies)
        assert torch.isfinite(gradient).all()
        with torch.no_grad():
            proxies -= 0.01 * gradient / gradient.norm()
    assert torch.nn.functional.cosine_similarity(*proxies.detach(), dim=0) < before - 0.01


def test_sphereface_plus_is_sphereface_and_that_energy():
    plus, plain, x = loss_of("sphereface+"), loss_of("sphereface"), features()
    proxies = plus.head.proxies
    assert torch.equal(proxies, plain.head.proxies)
    expected = plain(x, LABELS)[KNOWN] + ENERGY_WEIGHT * energy(proxies, LABELS[KNOWN])
    torch.testing.assert_close(plus(x, LABELS)[KNOWN], expected)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_state_and_gradient(name):
    torch.manual_seed(0)
    heads = Heads(PEOPLE, 0, name)
    before = {key: value.clone() for key, value in heads.state_dict().items()}
    assert before
    x = torch.randn(6, 128, requires_grad=True)
    for _ in range(2):
        losses = heads.identity(x, LABELS)
        assert losses.shape == (6,)
        (losses * KNOWN).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[KNOWN].norm(dim=1) > 0).all()
    assert not x.grad[~KNOWN].any()
    moved = [key for key, value in heads.state_dict().items() if not torch.equal(before[key], value)]
    assert moved == {
        "center": ["identity.center.centres"],
        "sphereface": ["identity.head.loss.steps"],
        "sphereface+": ["identity.head.loss.steps"],
    }.get(name, [])


def test_each_can_be_set():
    assert get_args(Distill.__annotations__["class_loss"]) == CLASS_LOSSES
