"""What every registered teacher's backbone must do, at reduced depth."""

import numpy as np
import onnxruntime
import pytest
import torch
from small_teachers import SMALL, SMALL_TIMM
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from export.onnx import export_onnx
from teachers import create_teacher, lora
from teachers.backbones import vit
from teachers.backbones.iresnet import DEPTHS, IResNet
from teachers.backbones.mobilefacenet import Bottleneck
from teachers.backbones.vit import FaceTransformer
from teachers.registry import TEACHERS, known_teacher

# Million parameters and billion multiply-accumulates at 112 px; the mobile one's as published (.99 and .22).
FULL = {
    "iresnet18": (24.03, 2.62),
    "iresnet50": (43.59, 6.33),
    "iresnet100": (65.16, 12.12),
    "mobilefacenet": (1.0, 0.22),
    "face_transformer": (63.2, 13.2),
}


def test_every_teacher_is_tested() -> None:
    assert set(SMALL) == set(TEACHERS)
    assert set(FULL) == set(TEACHERS) - {"swin_b", "dlib_resnet"}


@pytest.fixture(params=[*sorted(TEACHERS), *SMALL_TIMM])
def small(request):
    if request.param in SMALL_TIMM:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    return lambda: known_teacher(request.param).build(**(SMALL | SMALL_TIMM)[request.param])


def test_forward_and_backward_are_finite_and_reach_every_parameter(small) -> None:
    backbone = small().train()
    x = torch.rand(3, 3, backbone.input_px, backbone.input_px)
    y = backbone(x)
    assert y.shape == (3, backbone.embedding_dim)
    # Unequal weights: batch norm's outputs sum to zero.
    (y * torch.randn(y.shape)).sum().backward()
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert frozen == (["features.weight"] if isinstance(backbone, IResNet) else [])
    for name, parameter in backbone.named_parameters():
        if name not in frozen:
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


def test_adapters_attach_and_change_nothing_before_training(small) -> None:
    backbone = small().eval()
    x = torch.rand(2, 3, backbone.input_px, backbone.input_px)
    with torch.no_grad():
        before = backbone(x)
        names = lora.attach(backbone, 2, **lora.targets_for(backbone))
        assert names
        assert torch.allclose(backbone(x), before, atol=1e-6)
    # Weighed: the plain sum of a layer norm's outputs is constant.
    features = backbone(x)
    (features * torch.randn_like(features)).sum().backward()
    for name in names:
        layer = backbone.get_submodule(name)
        branch = layer.low_quality if hasattr(layer, "low_quality") else layer.adapter
        assert branch.up.weight.grad.abs().sum() > 0, name


SLOW_TO_TRACE = ("swin_b", *SMALL_TIMM)


@pytest.mark.parametrize(
    "name",
    # One of each class.
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW_TO_TRACE else ())
        for name in sorted({*TEACHERS, *SMALL_TIMM} - {"iresnet50", "iresnet100"})
    ],
)
def test_the_onnx_file_equals_the_backbone(name, tmp_path) -> None:
    torch.manual_seed(0)
    backbone = known_teacher(name).build(**(SMALL | SMALL_TIMM)[name]).eval()
    px = backbone.input_px
    export_onnx(backbone, tmp_path / "a.onnx", px)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    x = torch.rand(3, 3, px, px)
    with torch.no_grad():
        expected = backbone(x).numpy()
    np.testing.assert_allclose(session.run(None, {"face": x.numpy()})[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FULL)
def test_the_full_size_is_that_of_the_papers(name) -> None:
    with torch.device("meta"):
        backbone = TEACHERS[name].build().eval()
        with FlopCounterMode(display=False) as counter:
            backbone(torch.empty(1, 3, 112, 112))
    million, macs = FULL[name]
    assert backbone.count_parameters() / 1e6 == pytest.approx(million, rel=0.01)
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_fresh_full_size_network_gives_finite_embeddings(name) -> None:
    teacher = create_teacher(name, "random")
    with torch.no_grad():
        embeddings = teacher(torch.rand(2, 3, teacher.input_px, teacher.input_px))
    assert embeddings.shape == (2, teacher.embedding_dim)
    assert torch.isfinite(embeddings).all()


def scrambled(backbone: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict with no number at its initial value, so that no layer can be left out unseen."""
    torch.manual_seed(1)
    state = backbone.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            noise = 0.1 * torch.randn_like(value)
            # The scales of norms, and their variances, stay near 1.
            state[name] = 1 + noise.abs() if value.dim() == 1 and not name.endswith(("bias", "mean")) else noise
    return state


def test_iresnet_computes_what_insightface_does_under_its_names() -> None:
    backbone = IResNet((1, 2, 1, 1), widths=(4, 4, 6, 8), embedding_dim=5).eval()
    state = scrambled(backbone)
    backbone.load_state_dict(state)

    def norm(x, name):
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def conv(x, name, **how):
        return F.conv2d(x, state[f"{name}.weight"], **how)

    x = torch.rand(2, 3, 112, 112)
    y = F.prelu(norm(conv((x - 0.5) / 0.5, "conv1", padding=1), "bn1"), state["prelu.weight"])
    for layer, depth in enumerate((1, 2, 1, 1), 1):
        for index in range(depth):
            at, stride = f"layer{layer}.{index}", 1 if index else 2
            z = norm(conv(norm(y, f"{at}.bn1"), f"{at}.conv1", padding=1), f"{at}.bn2")
            z = conv(F.prelu(z, state[f"{at}.prelu.weight"]), f"{at}.conv2", padding=1, stride=stride)
            if index == 0:
                y = norm(conv(y, f"{at}.downsample.0", stride=2), f"{at}.downsample.1")
            y = norm(z, f"{at}.bn3") + y
    y = norm(F.linear(norm(y, "bn2").flatten(1), state["fc.weight"], state["fc.bias"]), "features")
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), y, atol=1e-4, rtol=1e-4)
    # Channels-last, as it is kept for speed, flattens in the same order.
    with torch.no_grad():
        last = backbone.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, y, atol=1e-4, rtol=1e-4)


def test_iresnet_has_the_entries_of_a_published_file() -> None:
    with torch.device("meta"):
        names = set(IResNet(DEPTHS["iresnet50"]).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"}
    expected |= {f"{name}.{part}" for name in ("bn1", "bn2", "features") for part in norm}
    for layer, depth in enumerate((3, 4, 14, 3), 1):
        for index in range(depth):
            at = f"layer{layer}.{index}"
            expected |= {f"{at}.conv1.weight", f"{at}.conv2.weight", f"{at}.prelu.weight"}
            expected |= {f"{at}.bn{number}.{part}" for number in (1, 2, 3) for part in norm}
        expected |= {f"layer{layer}.0.downsample.0.weight", *(f"layer{layer}.0.downsample.1.{part}" for part in norm)}
    assert names == expected


@pytest.mark.parametrize("patch", [8, 12])
def test_the_face_transformer_reads_the_authors_weights(patch) -> None:
    """Against their forward pass, written out: patches flattened, scale width^-1/2, pixels 0..255, class token."""
    dim, heads, depth = 16, 2, 2
    torch.manual_seed(0)
    official = {
        "pos_embedding": torch.randn(1, 197, dim), "cls_token": torch.randn(1, 1, dim),
        "patch_to_embedding.weight": torch.randn(dim, 3 * patch**2) / 3000, "patch_to_embedding.bias": torch.randn(dim),
        "mlp_head.0.weight": torch.randn(dim), "mlp_head.0.bias": torch.randn(dim), "loss.weight": torch.randn(99, dim),
    }  # fmt: skip
    for layer in range(depth):
        shapes = {
            "0.fn.norm": (dim,), "0.fn.fn.to_qkv": (3 * dim, dim), "0.fn.fn.to_out.0": (dim, dim),
            "1.fn.norm": (dim,), "1.fn.fn.net.0": (4 * dim, dim), "1.fn.fn.net.3": (dim, 4 * dim),
        }  # fmt: skip
        for name, shape in shapes.items():
            official[f"transformer.layers.{layer}.{name}.weight"] = torch.randn(shape) / 2
            if name != "0.fn.fn.to_qkv":
                official[f"transformer.layers.{layer}.{name}.bias"] = torch.randn(shape[:1])

    def apply(x, name):
        return F.linear(x, official[f"{name}.weight"], official.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (dim,), official[f"{name}.weight"], official[f"{name}.bias"])

    x = torch.rand(2, 3, 112, 112)
    if patch == 8:  # (row, column, channel) in each patch
        y = (255 * x).view(2, 3, 14, 8, 14, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 196, 192)
    else:
        y = F.unfold(255 * x, 12, stride=8, padding=4).transpose(1, 2)
    y = torch.cat([official["cls_token"].expand(2, 1, dim), apply(y, "patch_to_embedding")], 1)
    y = y + official["pos_embedding"]
    for layer in range(depth):
        at = f"transformer.layers.{layer}"
        q, k, v = (
            part.view(2, 197, heads, dim // heads).transpose(1, 2)
            for part in apply(norm(y, f"{at}.0.fn.norm"), f"{at}.0.fn.fn.to_qkv").chunk(3, -1)
        )
        z = (q @ k.transpose(2, 3) * dim**-0.5).softmax(-1) @ v
        y = y + apply(z.transpose(1, 2).reshape(2, 197, dim), f"{at}.0.fn.fn.to_out.0")
        y = y + apply(F.gelu(apply(norm(y, f"{at}.1.fn.norm"), f"{at}.1.fn.fn.net.0")), f"{at}.1.fn.fn.net.3")
    expected = norm(y[:, 0], "mlp_head.0")

    state = vit.from_official(official)
    assert vit.patch_of(state) == patch
    backbone = FaceTransformer(patch, depth, dim, heads, 4 * dim).eval()
    backbone.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), expected, atol=1e-4, rtol=1e-4)
    assert vit.from_official(state) == state


def test_timm_normalises_as_the_model_states_and_leaves_the_classifier_out(tmp_path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    full = timm.create_model("test_resnet", num_classes=7).eval()
    torch.save(full.state_dict(), tmp_path / "trained.pt")
    teacher = create_teacher("timm:test_resnet", tmp_path / "trained.pt")
    assert (teacher.input_px, teacher.embedding_dim, teacher.template, teacher.metric) == (160, 96, "arcface", "cosine")
    x = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(full.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = full.forward_head(full.forward_features((x - mean) / std), pre_logits=True)
        torch.testing.assert_close(teacher(x), expected, atol=1e-5, rtol=1e-4)
    # What this project saved of the same backbone has one more level in its names.
    torch.save(teacher.backbone.state_dict(), tmp_path / "ours.pt")
    with torch.no_grad():
        torch.testing.assert_close(create_teacher("timm:test_resnet", tmp_path / "ours.pt")(x), teacher(x))
    assert create_teacher("timm:test_vit?px=64&template=dlib&metric=euclidean", "random").input_px == 64


def test_a_bottleneck_adds_its_input_only_where_the_shape_stays() -> None:
    x = torch.rand(2, 8, 6, 6)
    for outputs, stride in ((8, 1), (8, 2), (12, 1)):
        block = Bottleneck(8, outputs, 2, stride).eval()
        with torch.no_grad():
            block.narrow[1].weight.zero_()
            y = block(x)
        torch.testing.assert_close(y, x if (outputs, stride) == (8, 1) else torch.zeros_like(y))
