"""The pools of negatives against lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from faces.errors import UserError
from teachers.losses.queues import BatchNegatives, MomentumQueue, ProxyQueue, create_pool

WIDTH, PEOPLE = 3, 4


def _push(pool: BatchNegatives, batch: int, proxies: Tensor, seed: int) -> list[tuple[Tensor, int, Tensor]]:
    """Enqueue a batch; what a list would append: each feature, its identity and its proxy of the time."""
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, batch, WIDTH, generator=generator)
    labels = torch.randint(0, PEOPLE, (batch,), generator=generator)
    pool.enqueue(query, key, labels, proxies)
    return [
        (feature, int(label), proxies[label].clone())
        for view in (query, key)
        for feature, label in zip(view, labels, strict=True)
    ]


def _use(pool: BatchNegatives, proxies: Tensor) -> tuple[Tensor, Tensor]:
    nothing = torch.zeros(1, WIDTH)
    return pool.negatives(nothing, nothing, torch.zeros(1, dtype=torch.long), proxies)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 5), max_size=5), st.integers(0, 100))
def test_the_proxy_queue_holds_the_last_features_moved_with_their_proxies(
    size: int, batches: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    pool, proxies, held = ProxyQueue(size, WIDTH), torch.randn(PEOPLE, WIDTH), []
    for number, batch in enumerate(batches):
        held += _push(pool, batch, proxies, seed + number)
        proxies += 0.3 * torch.randn(PEOPLE, WIDTH)
    held = held[-size:]
    features, identities = _use(pool, proxies)
    assert features.shape == (size, WIDTH)
    assert int(pool.filled) == len(held)
    assert sorted(identities.tolist()) == sorted([label for _, label, _ in held] + [-1] * (size - len(held)))
    expected = []
    for feature, label, then in held:
        length = float((feature @ feature) ** 0.5 / (then @ then) ** 0.5)
        expected.append(feature + length * (proxies[label] - then))
    used = sorted(features[identities != -1].tolist())
    torch.testing.assert_close(torch.tensor(used), torch.tensor(sorted(row.tolist() for row in expected)))
    assert int(pool.pointer) == sum(2 * min(batch, 99) for batch in batches) % size or 2 * max(batches) > size


def test_proxies_that_stay_leave_the_features() -> None:
    pool, proxies = ProxyQueue(8, WIDTH), torch.randn(PEOPLE, WIDTH, requires_grad=True)
    held = _push(pool, 4, proxies.detach(), 0)
    features, identities = _use(pool, proxies)
    torch.testing.assert_close(features, torch.stack([feature for feature, _, _ in held]))
    assert identities.tolist() == [label for _, label, _ in held]
    assert not features.requires_grad


@pytest.mark.parametrize("name", ["proxy", "momentum"])
def test_a_state_dict_resumes_a_queue(name: str) -> None:
    proxies, encoder = torch.randn(PEOPLE, WIDTH), nn.Linear(WIDTH, WIDTH)
    pool, other = (create_pool(name, 7, WIDTH, encoder) for _ in range(2))
    _push(pool, 3, proxies, 0)
    pool.follow(nn.Linear(WIDTH, WIDTH))
    other.load_state_dict(pool.state_dict())
    for number in (1, 2):
        _push(pool, 2, proxies + number, number)
        _push(other, 2, proxies + number, number)
    for ours, theirs in zip(_use(pool, proxies), _use(other, proxies), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in pool.state_dict().items())
    assert {"features", "identities", "pointer", "filled"} <= set(pool.state_dict())


def test_what_was_taken_does_not_change_with_the_queue() -> None:
    for name in ("proxy", "momentum"):
        pool, proxies = create_pool(name, 4, WIDTH, nn.Identity()), torch.randn(PEOPLE, WIDTH)
        _push(pool, 2, proxies, 0)
        features, identities = _use(pool, proxies)
        before = features.clone(), identities.clone()
        _push(pool, 2, proxies, 1)
        assert torch.equal(features, before[0])
        assert torch.equal(identities, before[1])


def test_the_batch_is_its_own_pool() -> None:
    pool = create_pool("batch", 9, WIDTH)
    query, key = torch.randn(2, 2, WIDTH, requires_grad=True)
    labels = torch.tensor([3, 1])
    views = pool.views(query, key, query, key)
    features, identities = pool.negatives(*views, labels, torch.zeros(4, WIDTH))
    assert torch.equal(features, torch.cat([query, key]))
    assert not features.requires_grad
    assert identities.tolist() == [3, 1, 3, 1]
    pool.enqueue(*views, labels, torch.zeros(4, WIDTH))
    assert pool.state_dict() == {}


def test_the_momentum_encoder_follows_slowly_and_gives_the_views() -> None:
    encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5))
    pool = MomentumQueue(8, WIDTH, encoder, momentum=0.9)
    first = encoder[0].weight.detach().clone()
    pool.train()
    assert not any(module.training for module in pool.encoder.modules())
    assert pool.training
    with torch.no_grad():
        encoder[0].weight += 1
        encoder[1].running_mean += 2
    pool.follow(encoder)
    torch.testing.assert_close(pool.encoder[0].weight, first + 0.1)
    pool.follow(encoder)
    torch.testing.assert_close(pool.encoder[0].weight, first + 0.19)
    assert torch.equal(pool.encoder[1].running_mean, torch.full((WIDTH,), 2.0))
    images = torch.randn(2, 5, WIDTH)
    features = torch.zeros(5, WIDTH)
    query, key = pool.views(features, features, *images)
    assert torch.equal(query, pool.encoder(images[0]))
    assert torch.equal(key, pool.encoder(images[1]))
    assert not key.requires_grad
    assert not any(parameter.requires_grad for parameter in pool.parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    pool.enqueue(query, key, torch.arange(5) % PEOPLE, torch.zeros(PEOPLE, WIDTH))
    held, identities = _use(pool, torch.randn(PEOPLE, WIDTH))
    rows = torch.cat([query, key])[-8:]
    assert torch.equal(held, rows)
    assert identities.tolist() == [2, 3, 0, 0, 1, 2, 3, 0]


def test_names() -> None:
    assert create_pool("none", 0, WIDTH) is None
    assert isinstance(create_pool("proxy", 4, WIDTH), ProxyQueue)
    with pytest.raises(UserError, match="proxy, batch, momentum, none"):
        create_pool("moco", 4, WIDTH)
    with pytest.raises(UserError, match="1 or more"):
        create_pool("proxy", 0, WIDTH)
    with pytest.raises(ValueError, match="encoder"):
        create_pool("momentum", 4, WIDTH)
