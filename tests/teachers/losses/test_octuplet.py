"""The octuplet loss against loops in float64, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faces.errors import UserError
from teachers.losses.octuplet import TERMS, distances, margin_for, octuplet_loss

DISTANCES = ("euclidean", "squared", "cosine")


def _batch(people: int = 4, width: int = 5, seed: int = 0, nobody: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    high, low = torch.randn(2, 2 * people + nobody, width, dtype=torch.float64, generator=generator)
    labels = torch.cat([torch.arange(people).repeat(2) * 7, torch.full((nobody,), -1)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return (high * 3).requires_grad_(), (low * 3 + high.detach()).requires_grad_(), labels


def _naive(high: Tensor, low: Tensor, labels: Tensor, margin: float, term: str, distance: str, normalise: bool):
    def apart(a: Tensor, b: Tensor) -> Tensor:
        if normalise:
            a, b = a / (a @ a).sqrt(), b / (b @ b).sqrt()
        if distance == "cosine":
            return 1 - (a @ b) / ((a @ a).sqrt() * (b @ b).sqrt())
        squared = ((a - b) ** 2).sum()
        return squared if distance == "squared" else squared.sqrt()

    sides = {"h": list(high), "l": list(low)}
    anchors, positives, negatives = (sides[side] for side in term)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for a in range(len(labels)):
        if labels[a] < 0 and term in ("hhh", "lll"):
            continue
        p = a
        if labels[a] >= 0:
            (p,) = [i for i in range(len(labels)) if labels[i] == labels[a] and i != a]
        count += 1
        nearest = None
        for n in range(len(labels)):
            if labels[n] != labels[a] or (labels[n] < 0 and n != a):
                d = apart(anchors[a], negatives[n])
                nearest = d if nearest is None or d < nearest else nearest
        triplet = apart(anchors[a], positives[p]) - nearest + margin
        if triplet > 0:
            total = total + triplet
    return total / count


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("seed", "nobody"), [(0, 0), (1, 0), (2, 5)])
def test_every_term_and_its_gradient(distance: str, normalise: bool, seed: int, nobody: int) -> None:
    high, low, labels = _batch(seed=seed, nobody=nobody)
    # A margin that leaves some anchors at 0.
    margin = {"euclidean": 1.0, "squared": 3.0, "cosine": 0.1}[distance] * (0.3 if normalise else 1)
    losses = octuplet_loss(high, low, labels, margin=margin, distance=distance, normalise=normalise)
    assert tuple(losses) == TERMS
    for term, loss in losses.items():
        naive = _naive(high, low, labels, margin, term, distance, normalise)
        torch.testing.assert_close(loss, naive)
        got = torch.autograd.grad(loss, (high, low), retain_graph=True, allow_unused=True)
        wanted = torch.autograd.grad(naive, (high, low), allow_unused=True)
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert torch.stack(torch.autograd.grad(sum(losses.values()), (high, low))).abs().sum() > 0


@settings(max_examples=25, deadline=None)
@given(
    people=st.integers(2, 6),
    nobody=st.integers(0, 4),
    seed=st.integers(0, 1000),
    margin=st.floats(0.01, 20),
    distance=st.sampled_from(DISTANCES),
    term=st.sampled_from(TERMS),
)
def test_any_batch(people: int, nobody: int, seed: int, margin: float, distance: str, term: str) -> None:
    high, low, labels = _batch(people, seed=seed, nobody=nobody)
    loss = octuplet_loss(high, low, labels, margin=margin, terms=[term], distance=distance)[term]
    torch.testing.assert_close(loss, _naive(high, low, labels, margin, term, distance, False))


def test_anchors_without_loss_count_in_the_mean() -> None:
    # Two people far apart, and a third whose two faces are apart: only its anchors have a loss.
    high = torch.tensor([[0.0, 0], [0, 0], [100, 0], [100, 0], [0, 100], [0, 150]])
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    loss = octuplet_loss(high, high, labels, margin=1.0, terms=["hhh"])["hhh"]
    assert float(loss) == 0
    loss = octuplet_loss(high, high, labels, margin=60.0, terms=["hhh"])["hhh"]
    # 50 + 60 - 100 for the face at 100; 50 + 60 - 150 < 0 for the one at 150.
    assert float(loss) == pytest.approx(10 / 6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("normalise", [False, True])
def test_equal_faces_have_a_gradient_that_is_a_number(distance: str, normalise: bool) -> None:
    one = torch.randn(3, 4).repeat(2, 1)
    high, low = one.clone().requires_grad_(), one.clone().requires_grad_()
    losses = octuplet_loss(high, low, torch.arange(3).repeat(2), margin=25.0, distance=distance, normalise=normalise)
    sum(losses.values()).backward()
    assert torch.isfinite(high.grad).all()
    assert torch.isfinite(low.grad).all()
    zeros = torch.zeros(4, 4, requires_grad=True)
    octuplet_loss(zeros, zeros, torch.tensor([0, 0, 1, 1]), margin=1.0, distance=distance)["lhh"].backward()
    assert torch.isfinite(zeros.grad).all()


def test_near_features_in_float32_and_bfloat16() -> None:
    a = torch.full((1, 512), 20.0)
    b = a + 1e-3
    assert float(distances(a, b, "euclidean")) == pytest.approx(1e-3 * 512**0.5, rel=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert distances(a.bfloat16(), b, "cosine").dtype == torch.float32


@pytest.mark.parametrize("labels", [[0, 0, 1, 2], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1, 1], [0, 0, -1, -1]])
def test_other_than_two_faces_of_each_person(labels: list[int]) -> None:
    x = torch.randn(len(labels), 3)
    with pytest.raises(ValueError, match="exactly two faces"):
        octuplet_loss(x, x, torch.tensor(labels), margin=1.0)


def test_one_person_or_shapes_that_do_not_fit() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="two or more identities"):
        octuplet_loss(x, x, torch.tensor([0, 0]), margin=1.0)
    with pytest.raises(ValueError, match="do not fit"):
        octuplet_loss(x, x[:, :2], torch.tensor([0, 0]), margin=1.0)


def test_unknown_names() -> None:
    high, low, labels = _batch()
    with pytest.raises(UserError, match="euclidean, squared, cosine"):
        octuplet_loss(high, low, labels, margin=1.0, distance="manhattan")
    for terms in (["hlh"], []):
        with pytest.raises(UserError, match="hhh, hll, lhh, lll"):
            octuplet_loss(high, low, labels, margin=1.0, terms=terms)


def test_the_margin_follows_the_norm_without_what_all_faces_share() -> None:
    # The median of an even count lies beside the middle of the pairs: more faces bring it nearer.
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(500, 4, generator=generator), dim=1)
    features = torch.cat([directions, -directions])
    for shared in (0.0, 3.0):
        assert margin_for(22 * features + shared) == pytest.approx(25, rel=1e-3)
        assert margin_for(1.4 * features + shared) == pytest.approx(25 / 22 * 1.4, rel=1e-3)
        assert margin_for(22 * features + shared, "squared") == pytest.approx(625, rel=1e-3)
    assert margin_for(22 * features, normalise=True) == pytest.approx(25 / 22, rel=1e-3)
    assert margin_for(5 * features, "cosine") == pytest.approx(margin_for(features, "squared", True) / 2)
    # One outlier does not move the medians.
    features[0] *= 1000
    assert margin_for(22 * features) == pytest.approx(25, rel=0.05)
