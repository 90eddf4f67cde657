"""A head divided among two processes against the plain head."""

import math

import pytest
import torch
from gloo import run_on
from torch import Tensor, nn
from torch.nn import functional as F

from faces.distributed import rank, world_size
from faces.errors import UserError
from faces.losses.margin import create_margin
from teachers.losses.partial_fc import PartialFC, memory_per_rank

WORLD, ROWS = 2, 3
MANY = 100_000
# kind, classes, dimensions, numbers. 1 and 3 classes: a rank with none, one with fewer.
CASES = [
    ("cosface", 7, 5, torch.float64),
    ("arcface", 7, 5, torch.float64),
    ("cosface", 3, 5, torch.float64),
    ("cosface", 1, 5, torch.float64),
    ("cosface", MANY, 128, torch.float32),
]
MARGINS = {"cosface": 0.4, "arcface": 0.5}


def _data(classes: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    features = torch.randn(WORLD * ROWS, dim, generator=generator, dtype=dtype)
    proxies = torch.randn(classes, dim, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (WORLD * ROWS,), generator=generator)
    labels[0], labels[1] = classes - 1, labels[2]
    # One feature opposite its proxy: ArcFace's other branch.
    features[3] = -proxies[labels[3]] + 0.01
    return features, proxies, labels


def _shard(classes: int) -> slice:
    share = math.ceil(classes / world_size())
    return slice(rank() * share, (rank() + 1) * share)


def _work() -> dict[str, object]:
    torch.manual_seed(0)
    out: dict[str, object] = {}
    for kind, classes, dim, dtype in CASES:
        head = PartialFC(dim, classes, MARGINS[kind], 64.0, kind).to(dtype)
        features, proxies, labels = _data(classes, dim, dtype)
        with torch.no_grad():
            head.proxies.copy_(proxies[_shard(classes)])
        mine = slice(rank() * ROWS, (rank() + 1) * ROWS)
        x = features[mine].clone().requires_grad_()
        loss = head(x, labels[mine])
        loss.backward()
        # As DDP's mean over ranks would divide it.
        out[kind, classes] = (loss.detach(), x.grad / world_size(), head.weight.grad)
        if classes == MANY:
            torch.optim.SGD(head.parameters(), 0.1).step()
            out["stepped"] = bool(torch.isfinite(head.weight).all())

    features, proxies, labels = _data(40, 5, torch.float32)
    head = PartialFC(5, 40, sample_rate=0.2)
    out["drawn"] = head.weight.detach().clone()
    with torch.no_grad():
        head.proxies.copy_(proxies[_shard(40)])
    optimiser = torch.optim.SparseAdam(head.parameters(), 0.1)
    mine = slice(rank() * ROWS, (rank() + 1) * ROWS)
    before, x = head.weight.detach().clone(), features[mine].clone().requires_grad_()
    loss = head(x, labels[mine])
    loss.backward()
    assert head.weight.grad.is_sparse
    gradient = head.weight.grad.to_dense()
    chosen = head.weight.grad.coalesce().indices()[0]
    optimiser.step()
    moved = (head.weight.detach() != before).any(1).nonzero().squeeze(1)
    out["sampled"] = (loss.detach(), x.grad / world_size(), gradient, chosen, moved)
    # Later steps leave alone those that no longer take part.
    before = head.weight.detach().clone()
    optimiser.zero_grad()
    head(x, labels[mine]).backward()
    again = head.weight.grad.coalesce().indices()[0]
    optimiser.step()
    out["again"] = (again, (head.weight.detach() != before).any(1).nonzero().squeeze(1))
    out["full"] = head.eval()(x, labels[mine]).detach()
    out["weight"] = head.weight.detach()
    return out


@pytest.fixture(scope="module")
def both() -> list[dict]:
    return run_on(WORLD, _work)


def _plain(kind: str, classes: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    features, proxies, labels = _data(classes, dim, dtype)
    head = create_margin(kind, dim, classes, MARGINS[kind], 64.0).to(dtype)
    head.set_proxies(proxies)
    features.requires_grad_()
    loss = head(features, labels).mean()
    loss.backward()
    return loss.detach(), features.grad, head.loss.W.grad.T


@pytest.mark.parametrize(("kind", "classes", "dim", "dtype"), CASES)
def test_loss_and_gradients_are_those_of_the_plain_head(both, kind, classes, dim, dtype) -> None:
    loss, feature_gradient, proxy_gradient = _plain(kind, classes, dim, dtype)
    assert torch.isfinite(loss)
    assert classes == 1 or loss > 1
    close = {"rtol": 1e-5, "atol": 1e-5}
    for result in both:
        torch.testing.assert_close(result[kind, classes][0], loss, **close)
    torch.testing.assert_close(torch.cat([r[kind, classes][1] for r in both]), feature_gradient, **close)
    torch.testing.assert_close(torch.cat([r[kind, classes][2] for r in both]), proxy_gradient, **close)
    if classes == MANY:
        assert feature_gradient.abs().max() > 0.1
        assert all(result["stepped"] for result in both)
        assert [len(result[kind, classes][2]) for result in both] == [MANY // 2] * 2


def test_ranks_seeded_alike_draw_other_proxies(both) -> None:
    first, second = (result["drawn"] for result in both)
    assert first.shape == second.shape == (20, 5)
    assert not torch.isclose(first, second).all(1).any()


def test_sampling_keeps_the_batch_and_is_the_plain_head_on_those_that_take_part(both) -> None:
    features, proxies, labels = _data(40, 5, torch.float32)
    chosen = torch.cat([result["sampled"][3] + 20 * number for number, result in enumerate(both)])
    assert set(labels.tolist()) <= set(chosen.tolist())
    assert len(chosen) == sum(max(4, sum(1 for label in set(labels.tolist()) if label // 20 == n)) for n in (0, 1))
    head = create_margin("cosface", 5, len(chosen), 0.4, 64.0)
    head.set_proxies(proxies[chosen])
    features.requires_grad_()
    places = torch.tensor([chosen.tolist().index(label) for label in labels.tolist()])
    loss = head(features, places).mean()
    loss.backward()
    gradient = torch.zeros(40, 5).index_copy_(0, chosen, head.loss.W.grad.T)
    for result in both:
        torch.testing.assert_close(result["sampled"][0], loss.detach())
        # Exactly those that take part are updated, at this step and at the next.
        assert torch.equal(result["sampled"][3], result["sampled"][4])
        assert torch.equal(*result["again"])
    assert any(not torch.equal(result["sampled"][3], result["again"][0]) for result in both)
    torch.testing.assert_close(torch.cat([result["sampled"][1] for result in both]), features.grad)
    torch.testing.assert_close(torch.cat([result["sampled"][2] for result in both]), gradient)


def test_evaluation_takes_every_class(both) -> None:
    features, _, labels = _data(40, 5, torch.float32)
    head = create_margin("cosface", 5, 40)
    head.set_proxies(torch.cat([result["weight"] for result in both]))
    expected = head(features, labels).mean().detach()
    for result in both:
        torch.testing.assert_close(result["full"], expected)


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_one_process(kind: str) -> None:
    features, proxies, labels = _data(7, 5, torch.float64)
    head = PartialFC(5, 7, MARGINS[kind], kind=kind).double()
    with torch.no_grad():
        head.proxies.copy_(proxies)
    features.requires_grad_()
    head(features, labels).backward()
    _, feature_gradient, proxy_gradient = _plain(kind, 7, 5, torch.float64)
    torch.testing.assert_close(features.grad, feature_gradient)
    torch.testing.assert_close(head.weight.grad, proxy_gradient)
    assert head.first == 0


def test_a_feature_on_its_proxy_and_half_precision() -> None:
    head = PartialFC(5, 7, kind="arcface", margin=0.5)
    labels = torch.tensor([1, 2])
    with torch.no_grad():
        head.proxies.copy_(torch.eye(7, 5))
    features = head.proxies[labels].detach().requires_grad_()
    head(features, labels).backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(head.weight.grad).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features.bfloat16(), labels), head(features.bfloat16().float(), labels))


def test_memory_by_arithmetic() -> None:
    # A million people in 512 dimensions on 8 ranks, batch 1024: 125,000 proxies a rank.
    mb = 2**20
    whole = memory_per_rank(1_000_000, 512, 8, 1024)
    held = 125_000 * 512 * 4
    assert whole == held * 3 + held * 3 + 3 * 1024 * 512 * 4 + 4 * 1024 * 125_000 * 4
    assert whole / mb == pytest.approx(3424, abs=1)
    assert memory_per_rank(1_000_000, 512, 8, 1024, optimiser_states=0) == whole - 2 * held
    sampled = memory_per_rank(1_000_000, 512, 8, 1024, sample_rate=0.1)
    assert sampled == held * 3 + 4 * 12_500 * 512 * 4 + 3 * 1024 * 512 * 4 + 4 * 1024 * 12_500 * 4
    assert memory_per_rank(10, 1, 4, 1, optimiser_states=0) == 4 * (3 + 3 * 3 + 3 + 4 * 3)


def test_the_arithmetic_covers_what_autograd_keeps() -> None:
    """The tensors saved for the backward pass must fit in what is stated beyond parameters and gradients."""
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    classes, dim, batch = 500, 16, 64
    head, features = PartialFC(dim, classes), torch.randn(batch, dim, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = head(features, torch.arange(batch))
    assert loss > 0
    assert sum(kept.values()) < memory_per_rank(classes, dim, 1, batch)
    assert sum(kept.values()) > 4 * classes * (dim + batch)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="cosface or arcface"):
        PartialFC(2, 2, kind="softmax")
    for rate in (0.0, 1.1):
        with pytest.raises(UserError, match="above 0"):
            PartialFC(2, 2, sample_rate=rate)
    with pytest.raises(UserError, match="one class"):
        PartialFC(2, 0)
    assert isinstance(PartialFC(2, 2).weight, nn.Parameter)
    assert F.normalize(PartialFC(2, 2).proxies, dim=1).shape == (2, 2)
