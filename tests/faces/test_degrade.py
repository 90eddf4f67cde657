"""The protocol's resize and the random degradation, against real tools and naive versions."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from faces.align import crop
from faces.degrade import Degradation, _affine_grid, _blur, degrade, jpeg, reduce, resize

_NONE = Degradation(
    **{field.name: 0 for field in dataclasses.fields(Degradation) if field.name != "jpeg_quality"}, jpeg_quality=50
)


def _only(**strength):
    return dataclasses.replace(_NONE, **strength)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def crops(orl):
    """(40, 112, 112, 3) uint8, made coloured so that a mixed-up channel is seen."""
    grey = crop(orl.images[::10], orl.landmarks[::10], "arcface").astype(float)
    return (grey * [1.0, 0.8, 0.6] + [0, 10, 40]).round().astype(np.uint8)


def _tensor(crops):
    return torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [7, 8, 14, 16, 32, 64, 100, 150])
def test_resize_is_antialiased_bicubic_as_pillow_has_it(crops, size):
    ours = resize(crops[:6], size)
    theirs = np.stack([np.array(Image.fromarray(image).resize((size, size), Image.BICUBIC)) for image in crops[:6]])
    assert (ours.dtype, ours.shape) == (np.uint8, (6, size, size, 3))
    # Pillow rounds between its two passes and in its weights, we do not: at most one grey level, mostly none.
    # cv2's bicubic (no antialias, another kernel) is .37 (at 150 px) to 7 (at 16 px) levels away.
    apart = np.abs(ours.astype(int) - theirs)
    assert apart.max() <= 1
    assert apart.mean() < 0.2


def test_resize_of_many_nothing_and_the_same_size(crops):
    many = np.concatenate([crops] * 8)
    np.testing.assert_array_equal(resize(many, 8), np.concatenate([resize(crops, 8)] * 8))
    assert resize(crops[:0], 16).shape == (0, 16, 16, 3)
    np.testing.assert_array_equal(resize(crops, 112), crops)
    black_white = np.zeros((1, 40, 40, 3), np.uint8)
    black_white[:, :, 20:] = 255
    # Bicubic overshoots at an edge: it must be cut off, not wrap around.
    enlarged = resize(black_white, 112)[0, :, :, 0].astype(int)
    assert enlarged[:, :40].max() < 30
    assert enlarged[:, -40:].min() > 225


def test_reduce_rounds_at_the_low_resolution_in_between(crops):
    low = resize(crops, 12)
    np.testing.assert_array_equal(reduce(crops, 12, 16), resize(low, 16))
    np.testing.assert_array_equal(reduce(crops, None, 16), resize(crops, 16))
    np.testing.assert_array_equal(reduce(crops, 16, 16), resize(crops, 16))
    np.testing.assert_array_equal(reduce(crops, 16, 112), resize(resize(crops, 16), 112))
    assert (reduce(crops, 8, 16) != reduce(crops, None, 16)).any()


@pytest.mark.parametrize("size", [16, 32])
def test_a_degradation_depends_on_its_generator_alone(crops, size):
    x = _tensor(crops)
    before = x.clone()
    one = degrade(x, size, 0.1, Degradation(), _generator(3))
    assert (one.shape, one.dtype) == ((40, 3, size, size), torch.float32)
    assert one.min() >= 0
    assert one.max() <= 1
    torch.rand(5)
    assert torch.equal(one, degrade(x, size, 0.1, Degradation(), _generator(3)))
    assert torch.equal(x, before)
    other = degrade(x, size, 0.1, Degradation(), _generator(4))
    assert ((one - other).abs().mean((1, 2, 3)) > 0.005).all()


def test_extreme_strengths_stay_in_range(crops):
    how = Degradation(1, 0.5, 0.5, 0.5, 1, 3, 2, 1, 1, 0.5, 1, 1)
    x = degrade(_tensor(crops), 16, 0.1, how, _generator())
    assert torch.isfinite(x).all()
    assert x.min() >= 0
    assert x.max() <= 1


@pytest.mark.parametrize(("size", "side", "margin"), [(16, 112, 0.0), (16, 48, 0.0), (16, 48, 0.1), (32, 115, 0.1)])
def test_no_degradation_is_the_plain_reduction(orl, size, side, margin):
    images, landmarks = orl.images[::10], orl.landmarks[::10]
    plain = _tensor(resize(crop(images, landmarks, "arcface"), size)) / 255
    stored = crop(images, landmarks, "arcface", side, margin)
    x = degrade(_tensor(stored), size, margin, _NONE, _generator())
    # The bilinear cut from a 48 px crop blurs a little; a shift by .15 px would exceed this.
    assert (x - plain).abs().mean() < 0.012
    slope = torch.gradient(plain, dim=3)[0]
    offset = ((x - plain) * slope).sum() / slope.square().sum()
    assert abs(offset) < 0.04


def test_a_flip_mirrors(crops):
    x = _tensor(crops)
    plain = degrade(x, 16, 0.1, _NONE, _generator())
    flipped = degrade(x, 16, 0.1, _only(flip=1.0), _generator())
    torch.testing.assert_close(flipped, plain.flip(3), atol=1e-4, rtol=0)
    some = degrade(x, 16, 0.1, _only(flip=0.5), _generator())
    is_plain = (some - plain).abs().amax((1, 2, 3)) < 1e-4
    is_flipped = (some - flipped).abs().amax((1, 2, 3)) < 1e-4
    assert (is_plain ^ is_flipped).all()
    assert 8 < is_flipped.sum() < 32


def _dot_positions(places, how, margin=0.2, side=192, size=64, batch=400):
    """(B, len(places), 2): where dots at `places` (share of the template, from its centre) go to, same unit."""
    generator_state = _generator(7)
    rows = torch.arange(side) + 0.5
    found = []
    for x, y in places:
        inner = side / (1 + 2 * margin)
        blob = torch.exp(
            -((rows[None] - side / 2 - x * inner) ** 2 + (rows[:, None] - side / 2 - y * inner) ** 2) / (2 * 3.0**2)
        )
        image = (blob * 255).round().byte().expand(batch, 3, side, side)
        out = degrade(image, size, margin, how, generator_state.manual_seed(7))[:, 0]
        at = (torch.arange(size) + 0.5) / size - 0.5
        mass = out.sum((1, 2))
        found.append(torch.stack([(out.sum(1) * at).sum(1) / mass, (out.sum(2) * at).sum(1) / mass], 1))
    return torch.stack(found, 1).double().numpy()


def test_shifts_have_the_stated_size():
    moved = _dot_positions([(0, 0)], _only(shift=0.05))[:, 0]
    assert np.abs(moved.mean(0)).max() < 0.01
    np.testing.assert_allclose(moved.std(0), 0.05, rtol=0.12)
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.15


def test_rotation_and_scale_turn_and_zoom_about_the_centre():
    right, down = _dot_positions([(0.25, 0), (0, 0.25)], _only(rotation=0.1, scale=0.08)).transpose(1, 0, 2)
    angle = np.arctan2(right[:, 1], right[:, 0])
    zoom = np.hypot(*right.T) / 0.25
    # One rigid turn: what lies to the right and what lies below turn alike, without a shear or a stretch.
    np.testing.assert_allclose(np.arctan2(-down[:, 0], down[:, 1]), angle, atol=0.01)
    np.testing.assert_allclose(np.hypot(*down.T) / 0.25, zoom, rtol=0.01)
    assert abs(angle.mean()) < 0.015
    assert angle.std() == pytest.approx(0.1, rel=0.12)
    assert np.log(zoom).std() == pytest.approx(0.08, rel=0.12)
    assert abs(np.log(zoom).mean()) < 0.015


def test_a_flip_mirrors_the_turned_face():
    """Mirrored or not, the face itself is turned by small angles: eyes that lay level stay nearly level."""
    how = _only(rotation=0.15, flip=0.5)
    left, right, below = _dot_positions([(-0.2, 0), (0.2, 0), (0, 0.4)], how).transpose(1, 0, 2)
    mirrored = left[:, 0] > right[:, 0]
    assert 100 < mirrored.sum() < 300
    across = np.where(mirrored[:, None], left - right, right - left)
    angle = np.arctan2(across[:, 1], across[:, 0])
    for group in (mirrored, ~mirrored):
        assert angle[group].std() == pytest.approx(0.15, rel=0.2)
    # No shear: what lies below still lies at a right angle to what lies across.
    np.testing.assert_allclose(np.arctan2(-below[:, 0], below[:, 1]), angle, atol=0.02)


def test_light_and_colour_change_as_stated():
    x = torch.full((4000, 3, 16, 16), 100, dtype=torch.uint8)
    base = 100 / 255

    def spread(**strength):
        found = degrade(x, 16, 0.0, _only(**strength), _generator(1))
        assert (found - found.mean((2, 3), keepdim=True)).abs().max() < 1e-5
        return found.mean((2, 3))

    gain = spread(gain=0.1)
    assert torch.allclose(gain[:, 0], gain[:, 2])
    assert gain[:, 0].std() == pytest.approx(0.1 * base, rel=0.05)
    bias = spread(bias=0.05)
    assert bias[:, 0].std() == pytest.approx(0.05, rel=0.05)
    assert torch.allclose(bias[:, 0], bias[:, 2])
    colour = spread(colour=0.06)
    assert colour.std(0) == pytest.approx(torch.full((3,), 0.06 * base), rel=0.06)
    assert torch.corrcoef(colour.T)[0, 1].abs() < 0.06
    for found in (gain, bias, colour):
        assert found.mean() == pytest.approx(base, abs=0.003)


def test_grey_takes_the_stated_share_of_the_faces(crops):
    x = _tensor(np.concatenate([crops] * 10))
    found = degrade(x, 16, 0.0, _only(grey=0.3), _generator())
    plain = degrade(x, 16, 0.0, _NONE, _generator())
    grey = (found - found.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert grey.float().mean() == pytest.approx(0.3, abs=0.07)
    torch.testing.assert_close(found[grey], plain[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1))
    torch.testing.assert_close(found[~grey], plain[~grey])


def _naive_blur(image, sigma):
    image = np.pad(image, 2, mode="edge")
    weights = np.array([np.exp(-(d**2) / (2 * sigma**2)) for d in range(-2, 3)])
    weights /= weights.sum()
    out = np.zeros((image.shape[0] - 4, image.shape[1] - 4))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = (image[i : i + 5, j : j + 5] * np.outer(weights, weights)).sum()
    return out


def test_blur_is_a_gaussian_of_each_images_own_sigma():
    x = torch.rand(4, 3, 16, 16, generator=_generator())
    sigma = torch.tensor([0.0, 0.3, 0.8, 2.0])
    found = _blur(x, sigma)
    torch.testing.assert_close(found[0], x[0])
    for image, seen, s in zip(x[1:].double().numpy(), found[1:].numpy(), sigma[1:].tolist(), strict=True):
        for channel in range(3):
            np.testing.assert_allclose(seen[channel], _naive_blur(image[channel], s), atol=1e-5)


def test_blur_takes_the_stated_share_of_the_faces(crops):
    x = _tensor(np.concatenate([crops] * 10))
    plain = degrade(x, 16, 0.0, _NONE, _generator())
    found = degrade(x, 16, 0.0, _only(blur=0.4, blur_sigma=3.0), _generator())
    changed = (found - plain).abs().amax((1, 2, 3)) > 0.005
    assert changed.float().mean() == pytest.approx(0.4, abs=0.09)
    sharpness = [(image[changed].diff(dim=3)).abs().mean() for image in (plain, found)]
    assert sharpness[1] < 0.8 * sharpness[0]


@pytest.mark.parametrize("quality", [5, 10, 30, 50, 60, 75, 90])
def test_jpeg_loses_what_a_real_encoder_loses(crops, quality):
    grey = resize(crops[:16], 48)[..., :1].repeat(3, axis=3)
    ours = (jpeg(_tensor(grey) / 255, torch.full((16,), float(quality))) * 255).round().permute(0, 2, 3, 1).numpy()
    real = np.stack(
        [cv2.imdecode(cv2.imencode(".jpg", image[..., 0], [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0) for image in grey]
    ).astype(float)
    lost = np.abs(real - grey[..., 0]).mean()
    # The encoder rounds its DCT to integers, which moves a few coefficients to the other side of a quantum: .36 of
    # a grey level at most, where the loss itself is 2 to 12.
    assert np.abs(ours[..., 0] - real).mean() < 0.4
    assert np.abs(ours - ours.mean(3, keepdims=True)).max() <= 1
    assert np.abs(ours[..., 0] - grey[..., 0]).mean() == pytest.approx(lost, rel=0.01)


def test_jpeg_at_quality_100_is_nearly_lossless_and_none_is_nothing():
    x = torch.rand(4, 3, 16, 24, generator=_generator())
    assert (jpeg(x, torch.full((4,), 100.0)) - x).abs().max() < 4 / 255
    assert jpeg(x[:0], torch.empty(0)).shape == (0, 3, 16, 24)
    mixed = jpeg(x, torch.tensor([100.0, 10, 100, 10]))
    assert torch.equal(mixed[1], jpeg(x[1:2], torch.tensor([10.0]))[0])
    assert ((mixed - x).abs().mean((1, 2, 3)) > 0.05).tolist() == [False, True, False, True]


def test_jpeg_in_a_degradation_takes_the_stated_share(crops):
    x = _tensor(np.concatenate([crops] * 10))
    plain = degrade(x, 16, 0.0, _NONE, _generator())
    found = degrade(x, 16, 0.0, _only(jpeg=0.25, jpeg_quality=10), _generator())
    changed = (found - plain).abs().amax((1, 2, 3)) > 1e-4
    assert changed.float().mean() == pytest.approx(0.25, abs=0.07)


def test_the_grid_is_torchs_own():
    theta = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(theta, [5, 3, 12, 12], align_corners=False)
    torch.testing.assert_close(_affine_grid(theta, 12), expected)
