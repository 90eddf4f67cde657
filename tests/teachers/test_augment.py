import numpy as np
import pytest
import torch

from faces.degrade import reduce
from teachers import augment


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)


def draws_of(*faces: int, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return augment.keyed_draws(seed, epoch, np.array(faces))


def test_a_face_draws_the_same_numbers_in_any_company() -> None:
    together = draws_of(3, 9, 4)
    assert torch.equal(together[1], draws_of(9)[0])
    assert torch.equal(together[[2, 0]], draws_of(4, 3))
    for other in (draws_of(9, epoch=1), draws_of(9, seed=1), draws_of(8)):
        assert (other != together[1]).float().mean() > 0.9
    many = augment.keyed_draws(0, 0, np.arange(2000))
    assert abs(float(many.mean()) - 0.5) < 0.01
    assert float(many.min()) >= 0
    assert float(many.max()) < 1


def test_low_resolution_is_the_protocols_reduction(images) -> None:
    px = torch.tensor([7, 40, 14, 7, 28, 400])
    out = augment.low_resolution(images, px)
    crops = images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    for i, side in enumerate(px.tolist()):
        expected = torch.from_numpy(reduce(crops[i : i + 1], side if side < 40 else None, 40)[0]).permute(2, 0, 1)
        # A value half-way between two levels may round to the other one.
        apart = (out[i] * 255 - expected).abs()
        assert apart.max() < 1.01, side
        assert apart.mean() < 0.02, side


def test_sizes_are_drawn_as_asked() -> None:
    draws = augment.keyed_draws(1, 0, np.arange(3000))
    mixed = augment.mixed_px(draws, (7, 14, 28))
    assert sorted(mixed.unique().tolist()) == [7, 14, 28]
    assert all(abs(float((mixed == px).float().mean()) - 1 / 3) < 0.04 for px in (7, 14, 28))
    px = augment.random_px(draws, 0.75, 7, 56, 112)
    assert abs(float((px == 112).float().mean()) - 0.25) < 0.03
    low = px[px < 112].float()
    assert low.min() == 7
    assert low.max() == 56
    # Log-uniform: as many below the geometric mean as above.
    assert abs(float((low < (7 * 56) ** 0.5).float().mean()) - 0.5) < 0.04


def test_flip_and_jitter(images) -> None:
    draws = draws_of(0, 1, 2, 3, 4, 5)
    draws[:, 0] = torch.tensor([0.1, 0.9, 0.1, 0.9, 0.1, 0.9])
    flipped = augment.flip(images, draws)
    assert torch.equal(flipped[0], images[0].flip(2))
    assert torch.equal(flipped[1], images[1])
    draws[:, 1:4] = 0.5
    assert torch.allclose(augment.jitter(images, draws, 0.2), images, atol=1e-6)
    draws[:, 1] = 1.0
    assert torch.allclose(augment.jitter(images, draws, 0.2), (images * 1.2).clamp(0, 1), atol=1e-6)
    draws[:, 1], draws[:, 3] = 0.5, 0.0
    grey = images.mean(1, keepdim=True)
    assert torch.allclose(augment.jitter(images, draws, 1.0), grey.expand_as(images), atol=1e-6)


@pytest.mark.parametrize("change", [augment.adaface, augment.qgface])
def test_augmentations_depend_on_each_faces_own_draws(change, images) -> None:
    draws = draws_of(*range(6))
    out = change(images, draws)
    assert out.shape == images.shape
    assert torch.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 1
    alone = torch.cat([change(images[i : i + 1], draws[i : i + 1]) for i in range(6)])
    assert torch.allclose(alone, out, atol=1e-5)


def test_adaface_changes_a_fifth_by_each_kind_and_qgface_all(images) -> None:
    many = images[:1].expand(400, -1, -1, -1)
    draws = augment.keyed_draws(0, 0, np.arange(400))
    changed = (augment.adaface(many, draws) - many).abs().amax((1, 2, 3)) > 1e-4
    # 1 - .8^3 = .488 are touched by at least one of the three.
    assert abs(float(changed.float().mean()) - 0.488) < 0.08
    ours = augment.qgface(many, draws)
    assert ((ours - many).abs().amax((1, 2, 3)) > 1e-2).all()


def test_jpeg_of_a_size_that_is_no_multiple_of_eight(images) -> None:
    x = images[:, :, :37, :37]
    out = augment.compress(x, torch.full((6,), 90.0))
    assert out.shape == x.shape
    assert 0 < (out - x).abs().mean() < 0.2
