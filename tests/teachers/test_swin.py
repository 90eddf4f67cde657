import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_teachers import SMALL

from teachers import create_teacher, lora
from teachers.backbones.swin import Attention, Block, Merge, Swin
from teachers.teacher import Teacher

GOLDEN = Path(__file__).with_name("petalface_golden.json")


def draw(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights by name, as the golden embedding was made with them; the constants are zero."""
    constants = ("attn_mask", "relative_position_index", "num_batches_tracked")
    drawn = sorted(name for name in shapes if not name.endswith(constants))
    state = {name: torch.zeros(shape) for name, shape in shapes.items() if name.endswith(constants)}
    for k, name in enumerate(drawn):
        z = np.random.default_rng([1, k]).standard_normal(shapes[name]).astype(np.float32)
        if name.endswith("running_var"):
            z = 1 + 0.1 * np.abs(z)
        elif name.endswith("running_mean"):
            z = 0.1 * z
        elif z.ndim >= 2:
            z = 0.02 * z
        else:
            z = 0.1 * z + (1 if name.endswith("weight") else 0)
        state[name] = torch.from_numpy(z.astype(np.float32))
    return state


@pytest.mark.slow
def test_a_published_checkpoint_gives_the_published_embedding(tmp_path) -> None:
    golden = json.loads(GOLDEN.read_text())
    torch.save(draw(golden["shapes"]), tmp_path / "model.pt")
    teacher = create_teacher("swin_b", tmp_path / "model.pt")
    assert sum(parameter.numel() for parameter in teacher.parameters()) == pytest.approx(215.1e6, rel=1e-3)
    images = np.random.default_rng(7).uniform(-1, 1, (2, 3, 120, 120)).astype(np.float32)
    x = (torch.from_numpy(images) + 1) / 2
    with torch.no_grad(), lora.use_alpha(teacher, torch.tensor(golden["alpha"])):
        embedding = teacher(x).numpy()
    assert np.abs(embedding - np.array(golden["embedding"])).max() < 1e-3
    with torch.no_grad(), lora.use_alpha(teacher, 1 - torch.tensor(golden["alpha"])):
        assert np.abs(teacher(x).numpy() - embedding).max() > 0.1


def test_names_and_shapes_are_the_published_ones() -> None:
    golden = json.loads(GOLDEN.read_text())["shapes"]
    with torch.device("meta"):
        network = Swin()
        lora.attach(network, 8)
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    theirs = lora.from_official({name: torch.empty(shape, device="meta") for name, shape in golden.items()})
    assert ours == {name: tuple(v.shape) for name, v in theirs.items() if "attn_mask" not in name}


def test_attention_equals_a_naive_loop_in_float64() -> None:
    torch.manual_seed(1)
    dim, heads, window = 12, 3, 3
    tokens, width = window * window, dim // heads
    attention = Attention(dim, heads, window).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    qkv = x @ attention.qkv.weight.T + attention.qkv.bias
    table = attention.relative_position_bias_table
    out = torch.zeros_like(x)
    for n in range(2):
        for h in range(heads):
            cut = slice(h * width, (h + 1) * width)
            q, k, v = qkv[n, :, :dim][:, cut], qkv[n, :, dim : 2 * dim][:, cut], qkv[n, :, 2 * dim :][:, cut]
            for i in range(tokens):
                scores = torch.empty(tokens, dtype=torch.float64)
                for j in range(tokens):
                    rows, columns = i // window - j // window, i % window - j % window
                    index = (rows + window - 1) * (2 * window - 1) + columns + window - 1
                    scores[j] = q[i] @ k[j] / width**0.5 + table[index, h]
                out[n, i, cut] = scores.softmax(0) @ v
    expected = out @ attention.proj.weight.T + attention.proj.bias
    assert torch.allclose(attention(x), expected, atol=1e-12)


def test_a_shifted_block_is_the_plain_one_between_two_rolls() -> None:
    torch.manual_seed(2)
    plain, shifted = Block(12, 3, 10, 5, 0), Block(12, 3, 10, 5, 2)
    shifted.load_state_dict(plain.state_dict())
    x = torch.randn(2, 10, 10, 12)
    expected = plain(x.roll((-2, -2), (1, 2)).reshape(2, 100, 12)).view(2, 10, 10, 12).roll((2, 2), (1, 2))
    assert torch.allclose(shifted(x.reshape(2, 100, 12)), expected.reshape(2, 100, 12), atol=1e-5)


def test_merge_takes_the_four_neighbours_column_by_column() -> None:
    merge = Merge(3, 4)
    x = torch.randn(2, 4, 4, 3)
    corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
    expected = merge.reduction(merge.norm(torch.cat(corners, -1).reshape(2, 4, 12)))
    assert torch.allclose(merge(x.reshape(2, 16, 3)), expected, atol=1e-6)


def test_features_come_before_the_projection() -> None:
    network = Swin(**SMALL["swin_b"]).eval()
    x = torch.rand(2, 3, 120, 120)
    features = network.features(x)
    assert features.shape == (2, 25 * 96) == (2, network.features_dim)
    assert torch.equal(network.feature_layer(features), network(x))


@pytest.mark.parametrize("wrong", [{"window": 7}, {"input_px": 112}, {"patch": 7}])
def test_windows_must_tile_the_image(wrong) -> None:
    with pytest.raises(ValueError, match="do not tile"):
        Swin(**(SMALL["swin_b"] | wrong))


def test_a_teacher_without_a_quality_takes_the_alpha_that_its_caller_sets() -> None:
    torch.manual_seed(2)
    backbone = Swin(**SMALL["swin_b"]).eval()
    lora.attach(backbone, 2)
    for name, parameter in backbone.named_parameters():
        if lora.is_adapter(name):
            torch.nn.init.normal_(parameter)
    backbone.double().eval()
    teacher = Teacher(backbone, name="swin_b", template="arcface", metric="cosine", licence="", source="")
    x = torch.rand(2, 3, 120, 120, dtype=torch.float64)
    with torch.no_grad():
        with lora.use_alpha(teacher, torch.tensor([0.2, 0.9], dtype=torch.float64)):
            mixed = teacher(x)
        for row, alpha in enumerate((0.2, 0.9)):
            with lora.use_alpha(teacher, alpha):
                assert torch.allclose(teacher(x[row : row + 1])[0], mixed[row])
        assert (teacher(x) - mixed).abs().max() > 1e-3
