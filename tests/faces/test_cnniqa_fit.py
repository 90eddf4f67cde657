"""The fit of a CNN-IQA to known degradations, each part against something independent."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scorers import Sharpness, tensor

from faces import cnniqa_fit
from faces.align import crop
from faces.cnniqa import grey
from faces.cnniqa_fit import Damage, correlations, fit_cnniqa
from faces.degrade import jpeg, reduce
from faces.errors import UserError
from faces.quality import (
    Alpha,
    Quality,
    alpha_percentiles,
    fit_map,
)


def _damage(count, **values):
    fields = vars(Damage.none(count))
    return Damage(**{**fields, **{name: torch.as_tensor(value).expand(count) for name, value in values.items()}})


def test_targets_follow_the_stated_formula():
    assert Damage.none(1).target().tolist() == [1.0]
    assert _damage(1, px=6.0).target().tolist() == [0.0]
    assert float(_damage(1, px=16.0).target()) == pytest.approx(math.log(16 / 6) / math.log(112 / 6))
    both = 1 / math.sqrt(1 / 28**2 + (1.5 / 42) ** 2)
    found = _damage(1, px=28.0, sigma=1.5, quality=40.0, gain=0.5, bias=0.0).target()
    assert float(found) == pytest.approx(math.log(both / 6) / math.log(112 / 6) * (1 - 0.2 * 0.6) * 0.9)
    assert float(_damage(1, gain=1.0, bias=-0.1).target()) == pytest.approx(1 - 0.1 * 0.4)
    # Resolution dominates: the worst of JPEG and light costs less than a reduction to half the pixels at full size.
    worst = float(_damage(1, quality=0.0, gain=0.4, bias=0.15).target())
    assert worst == pytest.approx(0.72)
    assert float(_damage(1, px=48.0).target()) < worst
    drawn = Damage.draw(4000, torch.Generator().manual_seed(0))
    target = drawn.target()
    assert 0 <= float(target.min()) < 0.02
    assert 0.98 < float(target.max()) <= 1
    assert (drawn.motion == 0).all()
    reduced = drawn.px[drawn.px < 112]
    assert 0.65 < len(reduced) / 4000 < 0.72
    # Log-uniform: its median is the geometric mean.
    assert float(reduced.median()) == pytest.approx(math.sqrt(5.5 * 111.5), rel=0.06)


def test_damage_is_what_other_code_does(crops, greys):
    count = len(greys)
    assert float((Damage.none(count).apply(greys) - greys).abs().max()) <= 1 / 255
    for px in (7, 16, 50):
        wanted = grey(tensor(reduce(crops, px, 112)))
        apart = (_damage(count, px=float(px)).apply(greys) - wanted).abs() * 255
        assert float(apart.mean()) < 0.5
        assert float(apart.max()) < 4
    blurred = _damage(2, sigma=2.0).apply(greys[:2])[0, 0].numpy()
    wanted = gaussian_filter(greys[0, 0].numpy(), 2.0, truncate=8)
    np.testing.assert_allclose(blurred[10:-10, 10:-10], wanted[10:-10, 10:-10], atol=0.01)
    lit = _damage(2, gain=0.5, bias=0.1).apply(greys[:2])
    torch.testing.assert_close(lit, greys[:2] * 0.5 + 0.1, rtol=0, atol=0.5 / 255 + 1e-6)
    quality = torch.tensor([100.0, 20.0])
    coded = _damage(2, quality=quality).apply(greys[:2])
    wanted = jpeg(greys[1:2].expand(-1, 3, -1, -1), quality[1:])[:, :1]
    assert float((coded[0] - greys[0]).abs().max()) <= 1 / 255
    torch.testing.assert_close(coded[1:], wanted, rtol=0, atol=0.5 / 255 + 1e-6)


def test_motion_goes_along_its_angle():
    stripes = torch.zeros(3, 1, 112, 112)
    stripes[:, :, ::8] = 1
    moved = _damage(
        3, motion=torch.tensor([15.0, 15.0, 0.0]), angle=torch.tensor([0.0, math.pi / 2, 1.0])
    ).apply(stripes)  # fmt: skip
    torch.testing.assert_close(moved[0], stripes[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(moved[2], stripes[2], rtol=0, atol=1e-3)
    middle = moved[1, 0, 20:90]
    # A line of 15 px holds one or two of the stripes, which lie 8 px apart.
    assert 0.05 < float(middle.min()) < float(middle.max()) < 0.15


def test_enlarged_faces_are_left_out_of_training(crops, greys):
    small = grey(tensor(reduce(crops[1::2], 48, 112)))
    mixed = greys.clone()
    mixed[1::2] = small
    chosen = cnniqa_fit._sharper_half(mixed)
    assert len(chosen) == len(mixed) // 2
    assert (chosen % 2 == 0).float().mean() > 0.9


def test_people_are_held_out_whole():
    identities = np.array([i // 3 for i in range(90)] + [-1] * 30)
    train, held_out = cnniqa_fit._split(identities, 5)
    assert sorted([*train, *held_out]) == list(range(120))
    assert not set(identities[train]) & set(identities[held_out]) - {-1}
    assert 6 <= len(held_out) <= 18
    with pytest.raises(UserError, match=r"at least 20 people .* not 19"):
        cnniqa_fit._split(np.arange(19), 0)


def test_correlations_of_a_known_scorer(crops):
    found = correlations(Sharpness(), crops[:60], 0)
    assert list(found) == ["resolution", "blur", "jpeg", "light", "motion blur"]
    assert min(found["resolution"], found["blur"], found["light"]) > 0.6
    reverse = correlations(Sharpness(-1.0), crops[:60], 0, sign=-1)
    assert reverse == found


def test_a_fit_depends_on_its_seed_alone(crops, orl):
    steps, planned = [], []
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, report = fit_cnniqa(
        crops, orl.identities[::4], 7, steps=3, progress=steps.append, planned=planned.append
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two, again = fit_cnniqa(crops, orl.identities[::4], 7, steps=3)
    other, _ = fit_cnniqa(crops, orl.identities[::4], 8, steps=3)
    assert (sum(steps), planned) == (3, [3])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.fc1.weight, other.fc1.weight)
    assert report["spearman"] == again["spearman"]
    assert (report["held_out_kind"], report["held_out_faces"]) == ("motion blur", 10)
    assert not one.training


@pytest.mark.slow
def test_two_minutes_give_a_score_that_sees_resolution(orl):
    crops = crop(orl.images, orl.landmarks, "arcface")
    network, report = fit_cnniqa(crops, orl.identities, 0, steps=300)
    assert report["spearman"]["resolution"] >= 0.9
    assert report["spearman"]["motion blur"] >= 0.4
    quality = Quality(network, "fitted", lower_better=False)
    assert fit_map(quality, crops, 0)["separation"] > 0.95
    for part in (crops, np.concatenate([crops[::2], reduce(crops[1::2], 16, 112)])):
        percentiles = alpha_percentiles(Alpha.of(quality, part, 0), crops)
        assert percentiles["full"][1] - percentiles["16"][1] >= 0.3


@pytest.mark.slow
def test_seconds_choose_the_steps(orl):
    crops = crop(orl.images, orl.landmarks, "arcface")
    _, report = fit_cnniqa(crops, orl.identities, 0, seconds=10)
    assert report["steps"] > 10
    assert 3 < report["seconds"] < 30


# ---- the command
