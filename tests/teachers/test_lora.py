import numpy as np
import pytest
import torch
from small_teachers import SMALL
from torch import nn

from teachers import lora
from teachers.backbones.swin import Swin


def adapted(rank: int = 3) -> Swin:
    torch.manual_seed(0)
    network = Swin(**SMALL["swin_b"]).eval()
    lora.attach(network, rank)
    return network


def scramble(network: nn.Module) -> None:
    """Give the adapters weights as training would."""
    for module in network.modules():
        if isinstance(module, lora.LowRank):
            nn.init.normal_(module.up.weight, std=0.3)


def test_an_attached_adapter_changes_nothing_before_training() -> None:
    torch.manual_seed(0)
    network = Swin(**SMALL["swin_b"]).eval()
    x = torch.rand(3, 3, 120, 120)
    before = network(x)
    names = lora.attach(network, 4)
    assert names == [f"layers.{s}.blocks.{b}.attn.qkv" for s, b in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))] + [
        "feature_layer.2"
    ]
    for alpha in (0.0, 1.0, torch.tensor([0.1, 0.5, 0.9])):
        with lora.use_alpha(network, alpha):
            assert torch.equal(network(x), before)
    # Down is drawn, up is zero: the first gradient reaches up alone, and it is not zero.
    network(x).square().sum().backward()
    twin = network.get_submodule("layers.0.blocks.0.attn.qkv")
    assert isinstance(twin, lora.TwinLoRALinear)
    assert twin.low_quality.up.weight.grad.abs().sum() > 0
    assert twin.high_quality.down.weight.abs().sum() > 0


def test_the_twin_formula_against_a_naive_loop_in_float64() -> None:
    torch.manual_seed(3)
    images, windows, tokens, inputs, outputs, rank = 3, 4, 5, 6, 7, 2
    layer = lora.adapt(nn.Linear(inputs, outputs).double(), rank, twin=True).eval()
    scramble(layer)
    alpha = torch.tensor([0.0, 0.3, 1.0])
    x = torch.randn(images * windows, tokens, inputs, dtype=torch.float64)
    with lora.use_alpha(layer, alpha):
        got = layer(x).detach().numpy()
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    low = layer.low_quality.up.weight.detach().numpy() @ layer.low_quality.down.weight.detach().numpy()
    high = layer.high_quality.up.weight.detach().numpy() @ layer.high_quality.down.weight.detach().numpy()
    for row in range(images * windows):
        a = float(alpha[row // windows])
        merged = weight + (1 - a) * low + a * high
        for token in range(tokens):
            expected = merged @ x[row, token].numpy() + bias
            np.testing.assert_allclose(got[row, token], expected, atol=1e-12)


def test_alpha_belongs_to_its_own_image() -> None:
    network = adapted()
    scramble(network)
    x = torch.rand(3, 3, 120, 120)
    alpha = torch.tensor([0.9, 0.2, 0.5])
    with torch.no_grad():
        with lora.use_alpha(network, alpha):
            together = network(x)
        for i in range(3):
            with lora.use_alpha(network, float(alpha[i])):
                assert torch.allclose(network(x[i : i + 1])[0], together[i], atol=1e-4)
        with lora.use_alpha(network, 0.9):
            assert not torch.allclose(network(x)[1], together[1], atol=1e-2)
        # Outside of the context the default holds again.
        with lora.use_alpha(network, lora.DEFAULT_ALPHA):
            expected = network(x)
        assert torch.equal(network(x), expected)


def test_alphas_that_do_not_match_the_batch() -> None:
    with pytest.raises(ValueError, match="do not divide"), lora.use_alpha(net := adapted(), torch.rand(2)):
        net(torch.rand(3, 3, 120, 120)[:1])


def test_official_names_round_trip() -> None:
    network = adapted()
    scramble(network)
    official = {}
    for name, value in network.state_dict().items():
        for old, new in (
            ("low_quality.down", "trainable_lora_down"),
            ("low_quality.up", "trainable_lora_up"),
            ("high_quality.down", "trainable_lora_down2"),
            ("high_quality.up", "trainable_lora_up2"),
            ("adapter.down", "trainable_lora_down"),
            ("adapter.up", "trainable_lora_up"),
        ):
            name = name.replace(f"{old}.weight", f"{new}.weight")
        official[name] = value
    assert lora.official_rank(official) == 3
    assert lora.official_rank(network.state_dict()) is None
    read = lora.from_official(official)
    assert list(read) == list(network.state_dict())
    assert all(torch.equal(read[name], value) for name, value in network.state_dict().items())


def test_attach_keeps_the_frozen_weights_and_the_mode() -> None:
    network = Swin(**SMALL["swin_b"]).train()
    weight = network.get_submodule("feature_layer.2").weight
    lora.attach(network, 2, twin="^$", single=r"^feature_layer\.2$")
    last = network.get_submodule("feature_layer.2")
    assert isinstance(last, lora.LoRALinear)
    assert last.weight is weight
    assert last.training
    assert last.adapter.dropout.training
    with pytest.raises(ValueError, match="adapted already"):
        lora.attach(network, 2)
    with pytest.raises(ValueError, match="no layer matches"):
        lora.attach(nn.Sequential(nn.Linear(2, 2)), 2)


@pytest.mark.parametrize("twin", [True, False])
def test_a_convolutions_adapter_against_explicit_weights_in_float64(twin) -> None:
    torch.manual_seed(4)
    base = nn.Conv2d(5, 7, 3, stride=2, padding=1).double()
    weight, bias = base.weight.detach().clone(), base.bias.detach().clone()
    layer = lora.adapt(base, 3, twin=twin, scale=0.5).eval()
    scramble(layer)
    alpha = torch.tensor([0.1, 0.8])
    x = torch.randn(2, 5, 9, 9, dtype=torch.float64)
    branches = ("low_quality", "high_quality") if twin else ("adapter",)
    deltas = []
    for branch in branches:
        low_rank = getattr(layer, branch)
        down, up = low_rank.down.weight.detach(), low_rank.up.weight.detach()[:, :, 0, 0]
        deltas.append(0.5 * torch.einsum("or,rikl->oikl", up, down))
    with lora.use_alpha(layer, alpha):
        got = layer(x).detach()
    for i in range(2):
        mixed = (1 - float(alpha[i])) * deltas[0] + float(alpha[i]) * deltas[1] if twin else deltas[0]
        expected = nn.functional.conv2d(x[i : i + 1], weight + mixed, bias, stride=2, padding=1)
        assert torch.allclose(got[i : i + 1], expected, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_merged_is_the_unmerged_network_at_that_alpha(alpha) -> None:
    network = adapted()
    scramble(network)
    plain = [name for name in network.state_dict() if not lora.is_adapter(name)]
    x = torch.rand(2, 3, 120, 120)
    with torch.no_grad():
        with lora.use_alpha(network, alpha):
            expected = network(x)
        names = lora.merge(network, alpha)
        assert torch.allclose(network(x), expected, atol=1e-5 * float(expected.abs().max()))
    assert list(network.state_dict()) == plain
    assert len(names) == 6
    assert all(type(network.get_submodule(name)) is nn.Linear for name in names)


def test_default_targets_of_backbones() -> None:
    from teachers.backbones.dlib_resnet import DlibResNet

    network = DlibResNet()
    names = lora.attach(network, 2, **lora.targets_for(network))
    assert names == [f"blocks.{i}.conv{j}" for i in range(7, 14) for j in (1, 2)]
    spatial = [nn.Conv2d(4, 4, 3) for _ in range(4)]
    convolutional = nn.Sequential(*spatial, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=2))
    assert lora.attach(convolutional, 2, **lora.targets_for(convolutional)) == ["2", "3"]
    with pytest.raises(ValueError, match="grouped"):
        lora.attach(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), 2, twin="0")


def test_adapters_of_a_bfloat16_backbone_keep_float32() -> None:
    layer = lora.adapt(nn.Linear(6, 5).to(torch.bfloat16), 2, twin=True)
    assert layer.low_quality.up.weight.dtype == torch.float32
    assert layer(torch.rand(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_adapters_alone_are_under_a_hundredth_of_the_published_swin() -> None:
    with torch.device("meta"):
        network = Swin()
        total = sum(parameter.numel() for parameter in network.parameters())
        lora.attach(network, 8)
    share = sum(value.numel() for value in lora.adapter_state(network).values()) / total
    # Twins on qkv and a single one on the last layer, as in the published weights.
    assert share == pytest.approx(0.00675, abs=2e-4)
