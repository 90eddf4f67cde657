import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.onnx import export_onnx
from export.quantize import FLAVOURS, quantize_onnx
from faces.errors import UserError
from teachers import lora


@pytest.fixture(scope="module")
def files(tmp_path_factory, student, noise):
    """The fp32 file of a student and both int8 ones, calibrated on noise."""
    folder = tmp_path_factory.mktemp("quantised")
    export_onnx(student("tiny16"), folder / "fp32.onnx", 16)
    for flavour in FLAVOURS:
        quantize_onnx(folder / "fp32.onnx", folder / f"{flavour}.onnx", noise(200, 16), flavour)
    return folder


def _session(file, flavour):
    options = onnxruntime.SessionOptions()
    if flavour == "tensorrt":
        # onnxruntime would fuse it to products that saturate on some CPUs.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def _chw(images):
    return np.ascontiguousarray((images / 255).astype(np.float32).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_is_near_torch_at_every_batch_size(files, student, noise, embed, flavour):
    images = noise(256, 16)
    expected, session = embed(student("tiny16"), images), _session(files / f"{flavour}.onnx", flavour)
    for batch in (1, 3, 256):
        (found,) = session.run(["embedding"], {"face": _chw(images[:batch])})
        assert found.shape == (batch, 128)
        assert found.dtype == np.float32
        assert _cosines(found, expected[:batch]).min() > 0.98
    assert (files / f"{flavour}.onnx").stat().st_size <= 150_000


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_weight_is_its_fp32_one_rounded_with_a_scale_for_its_channel(files, flavour):
    fp32 = {w.name: numpy_helper.to_array(w) for w in onnx.load(str(files / "fp32.onnx")).graph.initializer}
    graph = onnx.load(str(files / f"{flavour}.onnx")).graph
    held = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    weights = [name for name, value in fp32.items() if value.ndim >= 2]
    assert len(weights) == 13
    for name in weights:
        # A Gemm's weight is either way round.
        stored, scale = held[f"{name}_quantized"], held[f"{name}_scale"]
        assert stored.dtype == np.int8
        original = fp32[name]
        axis = next(i for i in range(original.ndim) if original.shape[i] == len(scale))
        scale = scale.reshape([-1 if i == axis else 1 for i in range(original.ndim)])
        assert not held[f"{name}_zero_point"].any()
        assert (abs(stored * scale - original) <= 0.5001 * scale).all()
        peak = abs(stored.astype(int)).max(axis=tuple(i for i in range(original.ndim) if i != axis))
        # One bit is spared where sums of pairs could saturate.
        assert (peak == {"cpu": 64, "tensorrt": 127}[flavour]).all()


def test_the_cpu_file_has_unsigned_activations_and_the_cameras_scale(files):
    graph = onnx.load(str(files / "cpu.onnx")).graph
    held = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    quantised = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {held[node.input[2]].dtype for node in quantised} == {np.dtype(np.uint8)}
    (first,) = (node for node in quantised if node.input[0] == "face")
    assert held[first.input[1]] == pytest.approx(1 / 255)


def test_the_tensorrt_file_is_symmetric_with_float_biases(files):
    graph = onnx.load(str(files / "tensorrt.onnx")).graph
    held = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert held[node.input[2]].dtype == np.int8
            assert not held[node.input[2]].any()
        if node.op_type in ("Conv", "Gemm"):
            assert [made[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert all(held[name].dtype == np.float32 for name in node.input[2:])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_same_input_gives_the_same_bytes_and_no_word(files, noise, tmp_path, capfd, flavour):
    quantize_onnx(files / "fp32.onnx", tmp_path / "again.onnx", noise(200, 16), flavour)
    assert (tmp_path / "again.onnx").read_bytes() == (files / f"{flavour}.onnx").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.onnx"]
    assert capfd.readouterr() == ("", "")


class _Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 16)

    def forward(self, x):
        return self.out(nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 1).flatten(1))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_bytes_and_alphas_stay_inputs(tmp_path, noise, flavour):
    torch.manual_seed(0)
    model = _Mixed().eval()
    lora.attach(model, 2, "^conv|^out", "^$")
    for name, parameter in model.named_parameters():
        if ".up." in name:
            nn.init.normal_(parameter)
    export_onnx(model, tmp_path / "f.onnx", 8, uint8_input=True, alpha_input=True, normalise=True)
    quantize_onnx(tmp_path / "f.onnx", tmp_path / "q.onnx", noise(100, 8), flavour)
    session = _session(tmp_path / "q.onnx", flavour)
    assert [(i.name, i.type) for i in session.get_inputs()] == [("face", "tensor(uint8)"), ("alpha", "tensor(float)")]
    for batch in (1, 3, 256):
        images, alpha = noise(batch, 8), np.linspace(0, 1, batch, dtype=np.float32)
        with torch.no_grad(), lora.use_alpha(model, torch.from_numpy(alpha)):
            expected = model(torch.from_numpy(_chw(images))).numpy()
        (found,) = session.run(None, {"face": images, "alpha": alpha})
        assert _cosines(found, expected).min() > 0.98
        assert abs(np.linalg.norm(found, axis=1) - 1).max() < 0.01


@pytest.mark.parametrize(
    "crops",
    [
        None,
        np.zeros((8, 16, 16, 3), np.uint8),
        np.ones((0, 16, 16, 3), np.uint8),
        np.ones((8, 32, 32, 3), np.uint8),
        np.ones((8, 3, 16, 16), np.uint8),
        np.random.default_rng(0).random((8, 16, 16, 3)),
    ],
    ids=["none", "blank", "no faces", "another size", "another layout", "floats"],
)
def test_crops_that_do_not_fit_are_refused(files, tmp_path, crops):
    with pytest.raises(UserError, match="calibration"):
        quantize_onnx(files / "fp32.onnx", tmp_path / "q.onnx", crops, "cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "noise", "cut", "other input"])
def test_a_damaged_file_is_refused_and_nothing_is_left(files, tmp_path, noise, damage):
    file, made = tmp_path / "f.onnx", tmp_path / "made"
    good = (files / "fp32.onnx").read_bytes()
    if damage == "noise":
        file.write_bytes(bytes(noise(4, 16)))
    elif damage == "cut":
        file.write_bytes(good[: len(good) // 2])
    elif damage == "other input":
        proto = onnx.load_from_string(good)
        proto.graph.input[0].name = "picture"
        file.write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=r"f\.onnx"):
        quantize_onnx(file, made / "q.onnx", noise(8, 16), "cpu")
    assert not made.exists() or not list(made.iterdir())


def test_an_unknown_flavour_is_a_programming_error(files, tmp_path, noise):
    with pytest.raises(ValueError, match="flavour"):
        quantize_onnx(files / "fp32.onnx", tmp_path / "q.onnx", noise(8, 16), "gpu")


def test_unsigned_weights_keep_eight_bits(files, student, noise, embed, tmp_path):
    unsigned = tmp_path / "unsigned.onnx"
    quantize_onnx(files / "fp32.onnx", unsigned, noise(200, 16), "cpu", unsigned=True)
    kinds = {file: {numpy_helper.to_array(one).dtype for one in onnx.load(str(file)).graph.initializer
                    if numpy_helper.to_array(one).size > 256} for file in (unsigned, files / "cpu.onnx")}  # fmt: skip
    assert kinds == {unsigned: {np.dtype(np.uint8)}, files / "cpu.onnx": {np.dtype(np.int8)}}
    images = noise(300, 16)
    wanted = embed(student("tiny16"), images)
    least = [
        _cosines(_session(file, "cpu").run(None, {"face": _chw(images)})[0], wanted).min()
        for file in (unsigned, files / "cpu.onnx")
    ]
    assert least[0] > max(0.98, least[1])
