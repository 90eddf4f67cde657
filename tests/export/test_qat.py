import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from export import qat
from export.onnx import export_onnx
from export.quantize import quantize_onnx
from export.targets import CPU, TENSORRT, Rounding, Target
from export.tflite import export_tflite
from faces import open_faces
from faces.align import crop
from faces.degrade import Degradation, resize
from faces.errors import UserError
from students.batches import Examples, Recipe
from students.train import train_student


@pytest.fixture(scope="module")
def faces():
    """ORL: crops of the first 30 people enlarged as in training, and 16 px crops of them and of ten others."""
    orl = open_faces("orl")
    train, test = (orl.subset(np.flatnonzero(part)) for part in (orl.identities < 30, orl.identities >= 30))
    small = [resize(crop(part.images, part.landmarks, "arcface"), 16) for part in (train, test)]
    return crop(train.images, train.landmarks, "arcface", 48, 0.1), *small


@pytest.fixture(scope="module")
def trained(student, faces):
    """A student that tells faces apart, a little: it learned a projection of their pixels."""
    enlarged, small, _ = faces
    pixels = small.reshape(len(small), -1) / 255
    drawn = np.random.default_rng(0).normal(size=(pixels.shape[1], 128))
    targets = ((pixels - pixels.mean(0)) @ drawn).astype(np.float32)
    model = student("tiny16")
    train_student(model, Examples(enlarged, 0.1, targets, None), Recipe(samples=75 * 64, batch=64), 0)
    return model


def _fragile(model, factor):
    """The same function; one channel of the first layers is larger than the others, and read with smaller weights."""
    model = copy.deepcopy(model)
    sides = model.chains.partition(", ")[0].split(" > ")
    writers, readers = ([model.get_submodule(name) for name in side.split()] for side in sides)
    with torch.no_grad():
        for value in (parameter for writer in writers for parameter in writer[1].parameters()):
            value[3] *= factor
        for reader in readers:
            reader[0].weight[:, 3] /= factor
    return model.eval()


def _cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(("steps", "least", "greatest"), [(127, -127, 127), (64, -64, 64), (127.5, -128, 127)])
def test_rounded_weights_are_numpys(steps, least, greatest):
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-3, 3, 6)[:, None, None, None]
    weight[2] = 0
    w = weight.numpy().astype(np.float64)
    scale = np.maximum(abs(w).max((1, 2, 3), keepdims=True) / steps, 1e-12)
    expected = np.clip(np.round(w / scale), least, greatest) * scale
    found = qat.round_weight(weight, steps).numpy()
    # A value midway between two steps may go either way: with half a step the peak of each row is one.
    midway = abs(abs(w / scale) % 1 - 0.5) < 1e-4
    assert midway.sum() <= len(w)
    np.testing.assert_allclose(found[~midway], expected[~midway], rtol=1e-5, atol=1e-12)
    assert (abs(found - w) <= scale * 0.5001).all()


def test_gradients_pass_straight_through_the_rounding_of_weights():
    weight = torch.randn(5, 8, requires_grad=True)
    upstream = torch.randn(5, 8)
    (qat.round_weight(weight) * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)


@pytest.mark.parametrize("symmetric", [False, True])
def test_rounded_activations_are_numpys_over_a_moving_range(symmetric):
    module, rng = qat.RoundActivation(symmetric), np.random.default_rng(0)
    low = high = None
    for _ in range(5):
        x = rng.normal(0.3, 1, (7, 9)).astype(np.float32)
        least, greatest = min(x.min(), 0), max(x.max(), 0)
        low = least if low is None else low + 0.05 * (least - low)
        high = greatest if high is None else high + 0.05 * (greatest - high)
        if symmetric:
            scale = max(-low, high) / 127
            expected = np.clip(np.round(x / scale), -127, 127) * scale
        else:
            scale = (high - low) / 255
            zero = np.round(-low / scale)
            expected = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
        found = module(torch.from_numpy(x)).numpy()
        # A value midway between two steps may go either way.
        assert (abs(found - expected) < 1.01 * scale).all()
        assert (abs(found - expected) < 1e-5).mean() > 0.95
    module.eval()
    before = module.low.item(), module.high.item()
    ends = (-max(-before[0], before[1]), max(-before[0], before[1])) if symmetric else before
    x = torch.tensor([-100.0, 0.1, 100.0], requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert (module.low.item(), module.high.item()) == before
    assert (abs(y - torch.tensor([ends[0], 0.1, ends[1]])) < scale).all()
    assert x.grad.tolist() == [0, 1, 0]


def test_equalised_layers_are_the_same_function_with_like_peaks():
    torch.manual_seed(0)
    writers, readers = [nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)], [nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 3)]
    with torch.no_grad():
        writers[0].weight[2] *= 50
        for layer in writers:
            layer.weight[5] = 0
    x = torch.rand(2, 3, 6, 6)

    def run():
        middle = sum(torch.relu(layer(x)) for layer in writers)
        return [layer(middle) for layer in readers]

    with torch.no_grad():
        before = run()
        qat.equalise(writers, readers)
        for old, new in zip(before, run(), strict=True):
            assert torch.allclose(new, old, atol=1e-5)
    out = torch.stack([layer.weight.abs().amax((1, 2, 3)) for layer in writers]).amax(0)
    into = torch.stack([layer.weight.abs().amax((0, 2, 3)) for layer in readers]).amax(0)
    alive = out > 0
    assert alive.sum() == 7
    assert torch.allclose(out[alive], into[alive])


def test_equalised_kernels_of_one_channel_each_are_the_same_function():
    torch.manual_seed(0)
    writer, reader = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 4, groups=8)
    with torch.no_grad():
        writer.weight[2] *= 50
        x = torch.rand(2, 3, 4, 4)
        before = reader(torch.relu(writer(x)))
        qat.equalise([writer], [reader])
        assert torch.allclose(reader(torch.relu(writer(x))), before, atol=1e-5)
    assert torch.allclose(*(layer.weight.abs().amax((1, 2, 3)) for layer in (writer, reader)))


@pytest.mark.parametrize("name", ["tiny16", "small16"])
def test_without_training_the_result_is_the_same_function(student, noise, embed, name):
    model, images = _fragile(student(name), 50), noise(64, 16)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    same = qat.quantisation_aware(model, noise(8, 48), 0.1, Degradation(), Rounding(), steps=0)
    expected = embed(model, images)
    assert abs(expected - embed(student(name), images)).max() < 1e-4 * abs(expected).max()
    assert abs(embed(same, images) - expected).max() < 1e-4 * abs(expected).max()
    # An ordinary student: another takes its weights; and the one given is as it was.
    student(name).load_state_dict(same.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not same.training


@pytest.mark.parametrize(("name", "products"), [("tiny16", 13), ("small16", 20)])
@pytest.mark.parametrize("consumer", [CPU, TENSORRT])
def test_every_product_has_rounded_operands(student, consumer, name, products):
    aware = qat.rounded(student(name), Target("onnx", "int8", consumer).rounding())
    aware(torch.rand(4, 3, 16, 16))
    layers = [module for module in aware.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == products
    assert all(layer.round_input.high > 0 for layer in layers)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in aware.modules())


@pytest.mark.parametrize("outputs", [True, False])
def test_sums_that_go_on_are_rounded_where_the_file_rounds_them(student, noise, outputs):
    aware, seen = qat.rounded(student("small16"), Rounding(outputs=outputs)), []
    faces = torch.from_numpy(noise(32, 16)).permute(0, 3, 1, 2) / 255
    aware(faces)
    for stage in aware.eval().stages:
        for block in stage:
            block.register_forward_hook(lambda module, inputs, output: seen.append(len(output.unique())))
    aware(faces)
    assert len(seen) == 7
    assert max(seen) <= 256 if outputs else max(seen) > 1000


def _int8(model, folder, faces, flavour="cpu", unsigned=False):
    """What the int8 file says of the held-out faces."""
    _, calibration, held_out = faces
    export_onnx(model, folder / "m.onnx", 16)
    quantize_onnx(folder / "m.onnx", folder / "q.onnx", calibration, flavour, unsigned)
    options = onnxruntime.SessionOptions()
    if flavour == "tensorrt":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(folder / "q.onnx"), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"face": (held_out / 255).astype("float32").transpose(0, 3, 1, 2)})[0]


def _int8_cosines(model, fp32, folder, faces, embed):
    """Least and mean cosine of the CPU's int8 file on held-out faces to what the first model says."""
    cosines = _cosines(_int8(model, folder, faces), embed(fp32, faces[2]))
    return cosines.min(), cosines.mean()


@pytest.mark.parametrize(("consumer", "unsigned"), [(CPU, False), (CPU, True), (TENSORRT, False)])
def test_weights_are_rounded_in_training_as_in_the_file(tmp_path, trained, faces, consumer, unsigned):
    how = Target("onnx", "int8", consumer).rounding(unsigned)
    aware = qat.rounded(trained, how)
    _int8(qat.plain(aware), tmp_path, faces, consumer, unsigned)
    graph, compared = onnx.load(tmp_path / "q.onnx").graph, 0
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or not node.input[0].endswith("weight_quantized"):
            continue
        values, scale, zero = (stored[name].astype(np.float64) for name in node.input)
        axis = next(one.i for one in node.attribute if one.name == "axis")
        rows = [-1 if dim == axis else 1 for dim in range(values.ndim)]
        found = (values - zero.reshape(rows)) * scale.reshape(rows)
        name = node.input[0].removeprefix("model.").removesuffix(".weight_quantized")
        layer = aware.get_submodule(name)
        expected = qat.round_weight(layer.weight, layer.steps).detach().numpy()
        found = found if found.shape == expected.shape else found.T
        # A value midway between two steps may go either way.
        off = abs(found - expected)
        assert off.max() < 1.01 * scale.max()
        assert (off < 1e-4 * scale.max()).mean() > 0.98, name
        compared += 1
    assert compared == 13


def test_weights_are_rounded_in_training_as_in_the_tflite_file(tmp_path, trained, faces):
    aware = qat.rounded(trained, Target("tflite", "int8").rounding())
    export_tflite(qat.plain(aware), tmp_path / "m.tflite", 16, "int8", faces[1])
    interpreter = Interpreter(model_path=str(tmp_path / "m.tflite"))
    layers = [module for module in aware.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    wanted = [layer.weight.detach().flatten(1).abs().amax(1).numpy() / layer.steps for layer in layers]
    stored = [tensor["quantization_parameters"]["scales"] for tensor in interpreter.get_tensor_details()]
    for scale in wanted:
        assert any(len(one) == len(scale) and np.allclose(one, scale, rtol=1e-4) for one in stored)


def test_tensorrts_file_rounds_what_products_read_and_nothing_else(tmp_path, trained, faces):
    how = Target("onnx", "int8", TENSORRT).rounding()
    _int8(trained, tmp_path, faces, TENSORRT)
    in_file = sum(node.op_type == "QuantizeLinear" for node in onnx.load(tmp_path / "q.onnx").graph.node)
    in_training = sum(isinstance(module, qat.RoundActivation) for module in qat.rounded(trained, how).modules())
    assert in_file == in_training == 13


def test_a_fragile_student_survives_int8_on_held_out_faces(tmp_path, trained, faces, embed):
    fragile = _fragile(trained, 200)
    before = _int8_cosines(fragile, fragile, tmp_path, faces, embed)
    aware = qat.quantisation_aware(
        fragile, faces[0], 0.1, Degradation(), Target("onnx", "int8", CPU).rounding(), steps=20, batch=32
    )
    after = _int8_cosines(aware, fragile, tmp_path, faces, embed)
    assert before[0] < 0.9
    assert after[0] > 0.98
    assert 1 - after[1] < (1 - before[1]) / 4


def test_training_itself_lowers_the_error_of_rounding(trained, faces, embed, monkeypatch):
    # Else the equalisation leaves it nothing to do here.
    monkeypatch.setattr(qat, "equalise", lambda writers, readers: None)
    fragile, errors = _fragile(trained, 200), []
    for steps in (0, 100):
        aware = qat.quantisation_aware(
            fragile, faces[0], 0.1, Degradation(), Rounding(), steps=steps, batch=64, lr=1e-3
        )
        again = qat.rounded(aware, Rounding())
        with torch.no_grad():
            # Ranges, from the faces that it was trained on.
            again(torch.from_numpy(faces[1]).permute(0, 3, 1, 2) / 255)
        errors.append(1 - _cosines(embed(again, faces[2]), embed(fragile, faces[2])).mean())
    assert errors[1] < 0.85 * errors[0]


def test_another_loop_may_train(student, faces):
    model = student("tiny16")
    targets = np.random.default_rng(0).normal(size=(len(faces[0]), 128)).astype(np.float32)
    examples = Examples(faces[0], 0.1, targets, None)
    recipe = Recipe(samples=96, batch=32, lr=1e-4, average=0.5)
    curve = []

    def train(aware):
        curve.extend(train_student(aware, examples, recipe, 0))

    aware = qat.quantisation_aware(model, faces[0], 0.1, Degradation(), Rounding(), train=train)
    assert len(curve) == 3
    assert not torch.equal(aware.mimic.weight, model.mimic.weight)


def test_the_same_seed_gives_the_same_student(student, faces):
    ticks = []
    first, second, other = (
        qat.quantisation_aware(
            student("tiny16"),
            faces[0],
            0.1,
            Degradation(),
            Rounding(),
            seed,
            steps=2,
            batch=16,
            tick=lambda *step: ticks.append(step),
        )
        for seed in (1, 1, 2)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.mimic.weight, other.mimic.weight)
    assert ticks == [(1, 2), (2, 2)] * 3


def test_a_training_that_diverged_is_said(student, noise):
    def spoil(aware):
        with torch.no_grad():
            aware.fc1.weight[0, 0] = torch.nan

    with pytest.raises(UserError, match="diverged"):
        qat.quantisation_aware(student("tiny16"), noise(8, 48), 0.1, Degradation(), Rounding(), train=spoil)
