import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export.onnx import export_onnx
from faces.errors import UserError


@pytest.mark.parametrize("px", [16, 32, 64, 96])
def test_equals_torch_at_every_batch_size(tmp_path, student, noise, embed, px):
    model, images = student(f"tiny{px}"), noise(256, px)
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
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] >= 18
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
