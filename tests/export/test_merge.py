import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import merge
from export.onnx import export_onnx
from faces import verification
from faces.degrade import reduce
from faces.errors import UserError
from teachers import lora, merging
from teachers.backbones.dlib_resnet import DlibResNet
from teachers.backbones.swin import Swin
from teachers.teacher import Teacher


class Brightness(nn.Module):
    """An alpha that any test can compute: the mean pixel."""

    def forward(self, x):
        return x.mean((1, 2, 3))


@pytest.fixture(scope="module", params=["swin_b", "dlib_resnet"])
def teacher(request):
    torch.manual_seed(0)
    if request.param == "swin_b":
        backbone = Swin(depths=(2, 2, 1), dim=24, heads=(2, 2, 2), embedding_dim=16)
        lora.attach(backbone, 4)
    else:
        backbone = DlibResNet(blocks=[(32, False), (64, True), (64, False)])
        lora.attach(backbone, 4, **lora.targets_for(backbone))
    for name, parameter in backbone.named_parameters():
        if lora.is_adapter(name) and ".up." in name:
            nn.init.normal_(parameter, std=0.3)
    one = Teacher(
        backbone, name=request.param, template="arcface", metric="cosine", licence="none", source="drawn"
    )  # fmt: skip
    one.alpha = Brightness()
    return one.eval()


@pytest.fixture(scope="module")
def crops(teacher):
    """Faces from dark to bright: alphas from about .2 to .8."""
    rng = np.random.default_rng(0)
    side = teacher.input_px
    base = rng.integers(0, 90, (12, side, side, 3))
    return (base + np.linspace(10, 160, 12).astype(int)[:, None, None, None]).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def takes_alpha(teacher, tmp_path_factory):
    """The ONNX file of the teacher that takes each image's alpha."""
    file = tmp_path_factory.mktemp("alpha") / "teacher.onnx"
    export_onnx(merging.at_alpha(teacher, 0.5), file, teacher.input_px, alpha_input=True)
    return file


@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0])
def test_merged_is_the_unmerged_teacher_at_that_alpha(teacher, crops, alpha):
    fixed, unmerged = merging.merged(teacher, alpha), merging.at_alpha(teacher, alpha)
    expected = unmerged.embed(crops)
    assert np.abs(fixed.embed(crops) - expected).max() < 1e-5 * np.abs(expected).max()
    assert not any(lora.is_adapter(name) for name, _ in fixed.named_parameters())
    assert np.abs(fixed.embed(crops) - merging.merged(teacher, 1 - alpha + 0.1).embed(crops)).max() > 1e-3
    # The teacher itself still takes each image's own alpha.
    assert merging.is_twin(teacher)
    assert not merging.is_twin(fixed)


def test_a_merged_teacher_has_no_adapter_in_its_graph(teacher, takes_alpha, tmp_path):
    without = tmp_path / "merged.onnx"
    export_onnx(merging.merged(teacher, 0.5), without, teacher.input_px)
    for file, expected in ((takes_alpha, True), (without, False)):
        graph = onnx.load(str(file)).graph
        words = {part for tensor in graph.initializer for part in tensor.name.split(".")}
        assert bool(words & {"low_quality", "high_quality", "adapter"}) is expected
        assert [one.name for one in graph.input] == (["face", "alpha"] if expected else ["face"])


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_alpha_as_an_input_is_exact(teacher, takes_alpha, crops, batch):
    session = onnxruntime.InferenceSession(str(takes_alpha), providers=["CPUExecutionProvider"])
    some = crops[:batch]
    faces = np.ascontiguousarray(some.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    (found,) = session.run(None, {"face": faces, "alpha": merging.alphas(teacher, some)})
    assert np.abs(found - teacher.embed(some)).max() < 1e-4


def test_alphas_of_the_policies(teacher, crops):
    low = reduce(crops, merge.LOW_PX, teacher.input_px)
    found = np.sort(np.concatenate([images.mean((1, 2, 3)) / 255 for images in (crops, low)]))
    half = len(found) // 2
    for policy, expected in (("gallery", found[half:]), ("probe", found[:half]), ("mean", found)):
        alpha = merge.choose_alpha(policy, teacher, crops)
        assert alpha.value == pytest.approx(expected.mean(), abs=1e-4)
        assert alpha.policy == policy
        assert "12 training faces" in alpha.source
    assert merge.choose_alpha("0.25", teacher, crops).value == 0.25
    assert merge.choose_alpha("input", teacher, crops).value is None
    for wrong in ("1.5", "-1", "nan", "best", ""):
        with pytest.raises(UserError, match=r"number in \[0, 1\] or one of gallery, probe, mean, input"):
            merge.choose_alpha(wrong, teacher, crops)


def test_without_a_quality_alpha_is_a_half(teacher, crops):
    one = copy.copy(teacher)
    one._modules = {**teacher._modules, "alpha": None}
    assert (merging.alphas(one, crops) == 0.5).all()


def test_the_price_is_what_a_plain_loop_finds(teacher):
    rng = np.random.default_rng(1)
    side = teacher.input_px
    identities = np.repeat(np.arange(6), 4)
    people = rng.integers(0, 200, (6, side, side, 3))
    images = (people[identities] + rng.integers(0, 56, (24, side, side, 3))).astype(np.uint8)
    pairs = verification.make_pairs(identities, 0, 30, folds=3)
    fixed = merging.merged(teacher, 0.9)
    prices = {one.px: one for one in merge.price(teacher, fixed, images, pairs, identities, (None, 16))}
    assert list(prices) == [None, 16]
    for px, one in prices.items():
        small = reduce(images, px, side)
        mine, own = fixed.embed(small), teacher.embed(small)
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(mine, own, strict=True)]
        assert one.cosine_least == pytest.approx(min(cosines), abs=1e-5)
        assert one.cosine_mean == pytest.approx(np.mean(cosines), abs=1e-5)
        for told, model, probes in (
            (one.accuracy, fixed, mine), (one.accuracy_per_image, teacher, own),
        ):  # fmt: skip
            gallery = model.embed(images)
            scores = verification.similarity(gallery[pairs.a], probes[pairs.b], "cosine")
            assert told == pytest.approx(100 * verification.correct_by_fold(scores, pairs).mean())
        assert one.ci95[0] <= one.accuracy - one.accuracy_per_image <= one.ci95[1]
        assert one.pairs == len(pairs.same)
    assert {one.accuracy for one in merge.price(teacher, fixed, images, None, identities)} == {None}
