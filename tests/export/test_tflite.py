import sys

import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from export.tflite import export_tflite
from faces.errors import UserError


def _run(interpreter, batch):
    face = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(face, batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(face, batch)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("px", [16, 32])
def test_equals_torch_at_every_batch_size(tmp_path, student, noise, embed, px):
    model, images = student(f"tiny{px}"), noise(256, px)
    expected = embed(model, images)
    model.train()
    export_tflite(model, tmp_path / "s.tflite", px)
    assert all(module.training for module in model.modules())
    interpreter = Interpreter(str(tmp_path / "s.tflite"))
    signature = interpreter.get_signature_list()["serving_default"]
    assert signature == {"inputs": ["face"], "outputs": ["embedding"]}
    # One layout inside: no transposes are left.
    assert "TRANSPOSE" not in {op["op_name"] for op in interpreter._get_ops_details()}
    for batch in (1, 3, 256):
        found = _run(interpreter, (images[:batch] / 255.0).astype("float32"))
        assert found.shape == (batch, 128)
        assert abs(found - expected[:batch]).max() < 1e-5 * max(1, abs(expected).max())


class _Complex(nn.Module):
    def forward(self, x):
        return x.to(torch.complex64).abs().mean((2, 3))


def test_a_model_that_cannot_be_converted_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="_Complex cannot be converted to TFLite"):
        export_tflite(_Complex(), tmp_path / "s.tflite", 16)
    assert not list(tmp_path.iterdir())


def test_a_missing_converter_is_named(tmp_path, student, monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(UserError, match="pip install 'litert-torch"):
        export_tflite(student("tiny16"), tmp_path / "s.tflite", 16)
