"""The super-resolution network: what it is before training, what training gives, and a killed training."""

import numpy as np
import pytest
import torch
from orl_people import write_people
from torch.nn import functional as F

from compress.espcn import Enlarging, Espcn, Recipe, largest_scale, psnr, train_espcn
from faces.align import crop
from faces.degrade import resize
from faces.errors import UserError
from faces.sources import open_faces
from students.student import count_macs

WHAT = Enlarging("arcface", 112, 16, 2)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Faces to learn from, and other people's."""
    root = write_people(tmp_path_factory.mktemp("data"), learn=8, val=4, shots=5)
    return open_faces(str(root / "learn")), open_faces(str(root / "val"))


def test_before_training_it_gives_the_bicubic_enlargement():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
    assert torch.allclose(Espcn(4)(x), wanted, atol=1e-6)


def test_each_low_pixel_gives_a_block_of_its_own():
    network = Espcn(2)
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.rand(1, 3, 4, 4)
    y = F.pad(x - 0.5, (2, 2, 2, 2), mode="replicate")
    conv = network.layers
    y = torch.tanh(F.conv2d(y, conv[0].weight, conv[0].bias))
    y = torch.tanh(F.conv2d(F.pad(y, (1, 1, 1, 1), mode="replicate"), conv[2].weight, conv[2].bias))
    y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="replicate"), conv[4].weight, conv[4].bias)
    wanted = torch.empty(1, 3, 8, 8)
    for channel in range(3):
        for row in range(8):
            for column in range(8):
                block = channel * 4 + (row % 2) * 2 + column % 2
                wanted[0, channel, row, column] = y[0, block, row // 2, column // 2]
    wanted += F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    assert torch.allclose(network(x), wanted, atol=1e-5)


def test_its_multiply_accumulates_are_those_of_its_convolutions():
    assert count_macs(Espcn(8), 16) == 256 * (3 * 64 * 25 + 64 * 32 * 9 + 32 * 192 * 9)


def test_training_recovers_more_than_bicubic(people, tmp_path):
    network, minutes = train_espcn(people[0], WHAT, Recipe(steps=150, batch=16, lr=3e-3), 0, tmp_path)
    crops = crop(people[1].images, people[1].landmarks, "arcface", 112)
    low, high = resize(crops, 16), resize(crops, 32)
    gained = psnr(network.enlarge(low), high) - psnr(resize(low, 32), high)
    assert gained.mean() > 0.3
    assert (gained > 0).mean() > 0.8
    assert 0 < minutes < 2


class Killed(Exception):
    pass


def test_a_killed_training_continues_to_the_same_bytes(people, tmp_path):
    how = Recipe(steps=12, batch=8)

    def kill(count, seen=[0]):  # noqa: B006
        seen[0] += count
        if seen[0] == 7:
            raise Killed

    train_espcn(people[0], WHAT, how, 3, tmp_path / "whole")
    with pytest.raises(Killed):
        train_espcn(people[0], WHAT, how, 3, tmp_path / "killed", kill, save_seconds=0)
    checkpoint = next((tmp_path / "killed").glob("*.pt"))
    assert torch.load(checkpoint, weights_only=True)["step"] == 6
    steps = []
    train_espcn(people[0], WHAT, how, 3, tmp_path / "killed", steps.append)
    assert steps == [6, *[1] * 6]
    first, second = (next((tmp_path / name).glob("*.safetensors")) for name in ("whole", "killed"))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert not checkpoint.exists()
    again = []
    train_espcn(people[0], WHAT, how, 3, tmp_path / "killed", again.append)
    assert again == [], "what is kept was trained again"


def test_psnr_is_that_of_the_definition():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3), dtype=np.uint8)
    for i, found in enumerate(psnr(a, b)):
        error = sum((float(p) - float(q)) ** 2 for p, q in zip(a[i].ravel(), b[i].ravel(), strict=True)) / 48
        assert found == pytest.approx(20 * np.log10(255 / np.sqrt(error)))
    assert psnr(a, a).tolist() == [100.0] * 3


def test_the_scale_is_what_the_teacher_can_see():
    assert [largest_scale(px, side) for px, side in ((16, 150), (32, 150), (16, 112), (50, 100))] == [8, 4, 4, 2]
    with pytest.raises(UserError, match="64 px leave nothing"):
        largest_scale(64, 112)
