import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export.onnx import IR_VERSION, OPSET, export_onnx
from faces.errors import UserError
from students import list_students
from teachers import lora
from teachers.backbones.swin import Swin


@pytest.mark.parametrize("name", list_students())
def test_equals_torch_at_every_batch_size(tmp_path, student, noise, embed, name):
    model = student(name)
    px = model.input_px
    images = noise(256, px)
    expected = embed(model, images)
    model.train()
    export_onnx(model, tmp_path / "s.onnx", px)
    session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"])
    chw = (images / 255.0).astype("float32").transpose(0, 3, 1, 2)
    for batch in (1, 3, 256):
        (found,) = session.run(["embedding"], {"face": chw[:batch]})
        assert found.shape == (batch, 128)
        assert abs(found - expected[:batch]).max() < 1e-5 * max(1, abs(expected).max())


def test_the_file_keeps_its_contract(tmp_path, student):
    export_onnx(student("tiny16"), tmp_path / "s.onnx", 16)
    assert [file.name for file in tmp_path.iterdir()] == ["s.onnx"]  # no weights beside it
    proto = onnx.load(str(tmp_path / "s.onnx"))
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == OPSET
    assert proto.ir_version == IR_VERSION
    (face,), (embedding,) = proto.graph.input, proto.graph.output
    assert (face.name, embedding.name) == ("face", "embedding")
    dims = face.type.tensor_type.shape.dim
    assert dims[0].dim_param
    assert [dim.dim_value for dim in dims[1:]] == [3, 16, 16]
    assert face.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    # Batch norms are folded into the convolutions.
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    data = (tmp_path / "s.onnx").read_bytes()
    assert b"tiny.py" not in data
    assert b"student.py" not in data
    export_onnx(student("tiny16"), tmp_path / "again.onnx", 16)
    assert (tmp_path / "again.onnx").read_bytes() == data


def test_training_modes_are_left_module_by_module(tmp_path, student):
    model = student("tiny16").train()
    model.stem.eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    export_onnx(model, tmp_path / "s.onnx", 16)
    assert [module.training for module in model.modules()] == before


class _Branching(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_a_model_that_cannot_be_traced_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="_Branching cannot be exported to ONNX"):
        export_onnx(_Branching(), tmp_path / "s.onnx", 16)
    assert not list(tmp_path.iterdir())


class _Windows(nn.Module):
    """Cuts its image into windows and attends within each, as a Swin does."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(3, 3 * 8), nn.Linear(8, 8)

    def forward(self, x):
        n = x.shape[0]
        windows = x.view(n, 3, 2, 8, 2, 8).permute(0, 2, 4, 3, 5, 1).reshape(n * 4, 64, 3)
        q, k, v = self.qkv(windows).reshape(n * 4, 64, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n * 4, 64, 8)
        return self.out(y).reshape(n, -1)


def test_a_transformer_keeps_its_batch_free(tmp_path):
    model = _Windows().eval()
    export_onnx(model, tmp_path / "w.onnx", 16)
    session = onnxruntime.InferenceSession(str(tmp_path / "w.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 3, 5):
        x = torch.rand(batch, 3, 16, 16)
        (found,) = session.run(None, {"face": x.numpy()})
        assert abs(found - model(x).detach().numpy()).max() < 1e-5


def _cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def half(tmp_path_factory, student):
    """The fp16 file of a student, fed with bytes, embeddings of length 1; the model was training."""
    model, file = student("tiny16").train(), tmp_path_factory.mktemp("half") / "h.onnx"
    export_onnx(model, file, 16, precision="fp16", uint8_input=True, normalise=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.training
    return file


def test_fp16_from_the_cameras_bytes_to_unit_vectors(half, student, noise, embed):
    session = onnxruntime.InferenceSession(str(half), providers=["CPUExecutionProvider"])
    (face,), (embedding,) = session.get_inputs(), session.get_outputs()
    assert (face.type, face.shape[1:], embedding.type) == ("tensor(uint8)", [16, 16, 3], "tensor(float)")
    images = noise(256, 16)
    expected = embed(student("tiny16"), images)
    for batch in (1, 3, 256):
        (found,) = session.run(None, {"face": images[:batch]})
        assert _cosines(found, expected[:batch]).min() > 0.9999
        # The norm is computed in fp32: in half precision it would be off by 5e-4.
        assert abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_fp16_weights_are_stored_in_half_precision(half):
    proto = onnx.load(str(half))
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    halves, rest = [], []
    for weight in proto.graph.initializer:
        (halves if weight.data_type == onnx.TensorProto.FLOAT16 else rest).append(weight)
    assert sum(np.prod(weight.dims) for weight in halves) > 108_000
    assert all(np.prod(weight.dims) <= 4 for weight in rest)
    # TensorRT refuses to transpose bytes.
    assert [node.op_type for node in proto.graph.node][:2] == ["Cast", "Transpose"]
    assert half.stat().st_size < 240_000


class _Normed(nn.Module):
    def __init__(self, epsilon):
        super().__init__()
        self.norm = nn.LayerNorm(16, eps=epsilon)

    def forward(self, x):
        return self.norm(x.mean((1, 2)))


def test_fp16_keeps_the_epsilon_of_a_norm(tmp_path):
    # Half precision has no 1e-12.
    export_onnx(_Normed(1e-12), tmp_path / "n.onnx", 16, precision="fp16")
    graph = onnx.load(str(tmp_path / "n.onnx")).graph
    (norm,) = (node for node in graph.node if node.op_type == "LayerNormalization")
    assert {a.name: a.f for a in norm.attribute}["epsilon"] == pytest.approx(1e-12)
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_alpha_is_an_input_of_each_image(tmp_path):
    torch.manual_seed(0)
    model = Swin(depths=(1, 1, 1), dim=24, heads=(2, 2, 2), embedding_dim=16)
    lora.attach(model, 4)
    for name, parameter in model.named_parameters():
        if ".up." in name:
            nn.init.normal_(parameter, std=0.3)
    model.eval()
    export_onnx(model, tmp_path / "a.onnx", model.input_px, alpha_input=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, len(i.shape)) for i in session.get_inputs()] == [
        ("face", "tensor(float)", 4),
        ("alpha", "tensor(float)", 1),
    ]
    for batch in (1, 3, 5):
        x, alpha = torch.rand(batch, 3, model.input_px, model.input_px), torch.linspace(0, 1, batch)
        with torch.no_grad():
            with lora.use_alpha(model, alpha):
                expected = model(x).numpy()
            unmixed = model(x).numpy()
        (found,) = session.run(None, {"face": x.numpy(), "alpha": alpha.numpy()})
        assert abs(found - expected).max() < 1e-4
        assert abs(unmixed - expected).max() > 1e-2  # the model's own alpha is what it was


class _Huge(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2**29, device="meta"))


def test_more_than_one_file_can_hold_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="2 GiB"):
        export_onnx(_Huge(), tmp_path / "h.onnx", 16)
    assert not list(tmp_path.iterdir())


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path, student):
    model = student("tiny16")
    with torch.no_grad():
        model.fc1.bias[0] = 1e5
    with pytest.raises(UserError, match=r"fc1\.bias holds values above 65504"):
        export_onnx(model, tmp_path / "s.onnx", 16, precision="fp16")
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision_is_a_programming_error(tmp_path, student):
    with pytest.raises(ValueError, match="int8"):
        export_onnx(student("tiny16"), tmp_path / "s.onnx", 16, precision="int8")
