"""Two processes against one: gathering, batch norm and a whole step give the same numbers."""

import copy

import pytest
import torch
from gloo import run_on
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from faces.distributed import GlobalBatchNorm, all_sum, gather, global_batch_norm, rank, world_size
from teachers.losses.octuplet import octuplet_loss

WORLD, ROWS = 2, 4


def _network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.BatchNorm1d(5, momentum=None, affine=False),
    ).double()


def _data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    high, low = torch.randn(2, WORLD * ROWS, 2, 6, 6, dtype=torch.float64)
    return high + 3, low, torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])


def _step(network: nn.Module, high: torch.Tensor, low: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One step as the trainer takes it, with a parameter behind the gather; the scale's gradient is returned."""
    scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    a, b = gather(network(high)), gather(network(low))
    loss = torch.stack(list(octuplet_loss(scale * a, scale * b, gather(labels), margin=4.0).values())).sum()
    loss.backward()
    return torch.stack([loss.detach(), scale.grad])


def _gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def _work() -> dict[str, object]:
    mine = slice(rank() * ROWS, (rank() + 1) * ROWS)
    assert world_size() == WORLD
    network = _network()
    names = list(network.state_dict())
    assert global_batch_norm(network) is network
    assert isinstance(network[1], GlobalBatchNorm)
    assert list(network.state_dict()) == names
    high, low, labels = (part[mine] for part in _data())
    wrapped = DistributedDataParallel(network)
    step = _step(wrapped, high, low, labels)

    x = torch.full((2, 3), float(rank() + 1), requires_grad=True)
    # Each rank weighs the rows by its own number: the sum over ranks must come back.
    weights = torch.arange(1.0, 5).view(4, 1) * 10 ** rank()
    everyone = gather(x.T.contiguous().T)
    (everyone * weights).sum().backward()
    total = torch.tensor([1.0 + rank()], requires_grad=True)
    (all_sum(total) * 10 ** rank()).sum().backward()

    uneven = GlobalBatchNorm(2)
    points = torch.arange(10.0).view(5, 2) ** 2
    part = points[:3] if rank() == 0 else points[3:]
    return {
        "step": step,
        "gradients": _gradients(network),
        "state": network.state_dict(),
        "everyone": everyone.detach(),
        "labels": gather(labels),
        "flags": gather(labels > 1),
        "x": x.grad,
        "sum": torch.stack([all_sum(total).detach()[0], total.grad[0]]),
        "uneven": uneven(part).detach(),
        "uneven_var": uneven.running_var,
        "half": uneven(part.bfloat16()).dtype,
        "evaluated": network.eval()(high).detach(),
    }


@pytest.fixture(scope="module")
def both() -> list[dict[str, object]]:
    return run_on(WORLD, _work)


def test_one_process_is_left_alone() -> None:
    assert (rank(), world_size()) == (0, 1)
    x = torch.randn(2, 3, requires_grad=True)
    assert gather(x) is x
    assert all_sum(x) is x
    network = _network()
    assert type(global_batch_norm(network)[1]) is nn.BatchNorm2d


def test_gather_keeps_the_order_and_sums_the_gradients(both) -> None:
    for number, result in enumerate(both):
        assert torch.equal(result["everyone"], torch.tensor([1.0, 1, 2, 2])[:, None].expand(4, 3))
        assert torch.equal(result["labels"], _data()[2])
        assert torch.equal(result["flags"], _data()[2] > 1)
        own = torch.arange(1.0, 5).view(2, 2)[number]
        assert torch.equal(result["x"], (11 * own)[:, None].expand(2, 3))
        assert torch.equal(result["sum"], torch.tensor([3.0, 11.0]))


def test_a_step_on_two_processes_is_a_step_on_one(both) -> None:
    network = _network()
    step = _step(network, *_data())
    wanted, state = _gradients(network), network.state_dict()
    assert step[0] > 1
    high = _data()[0]
    for number, result in enumerate(both):
        torch.testing.assert_close(result["step"], step)
        assert set(result["gradients"]) == set(wanted)
        for name, gradient in wanted.items():
            torch.testing.assert_close(result["gradients"][name], gradient)
        for name, value in state.items():
            torch.testing.assert_close(result["state"][name], value)
        assert all(gradient.abs().max() > 1e-3 for name, gradient in wanted.items() if name.endswith("weight"))
        expected = copy.deepcopy(network).eval()(high)[number * ROWS :][:ROWS]
        torch.testing.assert_close(result["evaluated"], expected.detach())


def test_batches_of_different_sizes_and_types_are_normalised_together(both) -> None:
    plain = nn.BatchNorm1d(2)
    points = torch.arange(10.0).view(5, 2) ** 2
    expected = plain(points).detach()
    torch.testing.assert_close(torch.cat([result["uneven"] for result in both]), expected)
    plain(points)
    for result in both:
        torch.testing.assert_close(result["uneven_var"], plain.running_var, rtol=1e-2, atol=0)
        assert result["half"] == torch.bfloat16


def test_the_batch_norm_of_one_process_is_torchs() -> None:
    ours, plain = GlobalBatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)
    with pytest.raises(ValueError, match="expected"):
        ours(torch.randn(3))
