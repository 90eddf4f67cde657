"""What every registered teacher's backbone must do, at reduced depth."""

import pytest
import torch
from small_teachers import SMALL

from teachers.registry import TEACHERS


def test_every_teacher_is_tested() -> None:
    assert set(SMALL) == set(TEACHERS)


@pytest.fixture(params=sorted(TEACHERS))
def small(request):
    torch.manual_seed(0)
    return lambda: TEACHERS[request.param].build(**SMALL[request.param])


def test_forward_and_backward_are_finite_and_reach_every_parameter(small) -> None:
    backbone = small().train()
    x = torch.rand(3, 3, backbone.input_px, backbone.input_px)
    y = backbone(x)
    assert y.shape == (3, backbone.embedding_dim)
    # Unequal weights: batch norm's outputs sum to zero.
    (y * torch.randn(y.shape)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_each_image_is_embedded_on_its_own(small) -> None:
    backbone = small().eval()
    x = torch.rand(4, 3, backbone.input_px, backbone.input_px)
    with torch.no_grad():
        together, alone = backbone(x), torch.cat([backbone(one[None]) for one in x])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_state_dict_round_trip(small, tmp_path) -> None:
    one, other = small().eval(), small().eval()
    torch.save(one.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.rand(2, 3, one.input_px, one.input_px)
    with torch.no_grad():
        assert torch.equal(one(x), other(x))
