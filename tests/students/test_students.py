"""Every student, by name: shapes, gradients, layers, sizes and counts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from faces.errors import UserError
from students import create_student, list_students
from students.registry import name_of
from students.small import Small
from students.student import count_macs, count_parameters

_MACS = {
    "tiny16": 1_470_464, "tiny32": 5_734_400, "tiny64": 22_790_144, "tiny96": 51_216_384,
    "small16": 8_309_760, "small32": 8_973_312,
}  # fmt: skip


@pytest.mark.parametrize("name", list_students())
def test_a_student_learns_saves_and_counts(name, monkeypatch):
    torch.manual_seed(0)
    student = create_student(name)
    px = student.input_px
    assert name == name_of(student)
    for side in (px, px + 8) if student.any_size else (px,):
        x = torch.rand(3, 3, side, side)
        student.train().zero_grad()
        feature = student(x)
        assert feature.shape == (3, 128)
        feature.square().sum().backward()
        for key, parameter in student.named_parameters():
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
            assert parameter.grad.abs().sum() > 0, key
    student.eval()
    x = torch.rand(4, 3, px, px)
    feature = student(x)
    assert torch.isfinite(feature).all()
    assert torch.equal(feature, student(x))
    # No face depends on the batch it is in.
    torch.testing.assert_close(torch.cat([student(one[None]) for one in x]), feature, atol=1e-5, rtol=1e-4)
    assert (feature[0] - feature[1]).abs().max() > 1e-4

    torch.manual_seed(1)
    other = create_student(name).eval()
    assert not torch.equal(other(x), feature)
    other.load_state_dict(student.state_dict())
    assert torch.equal(other(x), feature)

    macs, parameters = count_macs(student, px), count_parameters(student)
    print(f"{name}: {parameters:,} parameters, {macs:,} multiply-accumulates")
    assert (macs, parameters) == (_MACS[name], 108_944 if name.startswith("tiny") else 190_816)
    assert parameters <= 210_000
    if name == "tiny16":
        assert parameters <= 110_000
        assert macs <= 1_600_000


@pytest.mark.parametrize("name", list_students("tiny*"))
def test_the_papers_layers(name, monkeypatch):
    student = create_student(name).eval()
    kinds = [type(module) for module in student.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.Linear)) == (10, 3)
    kernels = [module.kernel_size for module in student.modules() if isinstance(module, nn.Conv2d)]
    assert kernels == [(3, 3), (1, 1)] * 5
    pools = []
    pool = F.max_pool2d
    monkeypatch.setattr(F, "max_pool2d", lambda *args: pools.append(args[1:]) or pool(*args))
    student(torch.rand(1, 3, student.input_px, student.input_px))
    assert pools == [(2,)] * 3


@pytest.mark.parametrize("px", [16, 32])
def test_small_keeps_16_px_for_its_first_stage_and_every_place_to_the_end(px):
    torch.manual_seed(0)
    student, seen = create_student(f"small{px}").eval(), []
    for stage in student.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    x = torch.rand(1, 3, px, px)
    feature = student(x)
    assert seen == [(32, 16, 16), (64, 8, 8), (96, 4, 4)]
    # A global average would forget which of the last map's places a feature came from.
    student.top.register_forward_hook(lambda module, inputs, output: output.flip(3))
    assert (student(x) - feature).abs().max() > 1e-4
    for side in (24, 48):
        with pytest.raises(ValueError, match="input_px must be 16 or 32"):
            Small(side)


def test_the_counts_are_those_of_the_layers():
    """A count by hand: k x k x in x out x places of each convolution, in x out of each linear layer."""
    student = create_student("tiny32").train()
    macs = []

    def count(module, inputs, output):
        places = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        macs.append(module.weight.numel() * places)

    hooks = [m.register_forward_hook(count) for m in student.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        student(torch.zeros(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert count_macs(student, 32) == sum(macs)
    assert student.training
    assert count_parameters(student) == sum(len(p.flatten()) for p in student.parameters())


def test_each_branch_reaches_the_feature():
    """The two skips and the narrow outputs both count: cutting either changes the feature."""
    torch.manual_seed(0)
    student, x = create_student("tiny16").eval(), torch.rand(2, 3, 16, 16)
    before = student(x)
    for name in ("narrow2", "narrow4", "wide1", "wide3"):
        hook = getattr(student, name).register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        after = student(x)
        hook.remove()
        assert (after - before).abs().max() > 1e-4, name
        # What is cut there still reaches the end through the skip.
        assert (after[0] - after[1]).abs().max() > 1e-4, name
    assert torch.equal(student(x), before)


def test_drawn_weights_depend_on_the_seed_alone():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(torch.cat([p.flatten() for p in create_student("tiny16").parameters()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_names_are_listed_by_pattern_and_unknown_ones_refused():
    assert list_students() == ["tiny16", "tiny32", "tiny64", "tiny96", "small16", "small32"]
    assert list_students("*6") == ["tiny16", "tiny96", "small16"]
    assert list_students("x*") == []
    with pytest.raises(UserError, match=r"unknown student 'tiny61'; did you mean tiny\d+\? Known: tiny16, tiny32"):
        create_student("tiny61")
    with pytest.raises(UserError, match=r"'tiny166'; did you mean tiny16\?"):
        create_student("tiny166")
    with pytest.raises(UserError, match=r"unknown student 'resnet'\. Known: tiny16"):
        create_student("resnet")
