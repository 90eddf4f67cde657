import subprocess
import sys

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from export.tflite import Quantisation, export_tflite
from faces.errors import UserError
from students import create_student


def _run(interpreter, batch):
    face = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(face, batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(face, batch)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("name", ["tiny16", "tiny32", "small16", "small32"])
def test_equals_torch_at_every_batch_size(tmp_path, student, noise, embed, name):
    model = student(name)
    px = model.input_px
    images = noise(256, px)
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


def _cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(("precision", "tolerance", "limit"), [("fp16", 0.9999, 245_000), ("int8", 0.98, 155_000)])
def test_smaller_files_are_near_torch_at_every_batch_size(tmp_path, student, noise, embed, precision, tolerance, limit):
    model, images, file = student("tiny16"), noise(256, 16), tmp_path / "s.tflite"
    expected = embed(model, images)
    model.train()
    said = export_tflite(model, file, 16, precision, noise(100, 16) if precision == "int8" else None)
    assert all(module.training for module in model.modules())
    assert [found.name for found in tmp_path.iterdir()] == ["s.tflite"]
    assert file.stat().st_size <= limit
    interpreter = Interpreter(str(file))
    assert interpreter.get_signature_list()["serving_default"] == {"inputs": ["face"], "outputs": ["embedding"]}
    assert "TRANSPOSE" not in {op["op_name"] for op in interpreter._get_ops_details()}
    fed = images
    if precision == "fp16":
        assert said is None
        fed = (images / 255).astype("float32")
    else:
        assert said == Quantisation("uint8", pytest.approx(1 / 255, abs=1e-6), 0)
    for batch in (1, 3, 256):
        found = _run(interpreter, fed[:batch])
        assert found.shape == (batch, 128)
        assert found.dtype == np.float32
        assert _cosines(found, expected[:batch]).min() > tolerance
    if precision == "int8":
        # Integers from the bytes to the last product, and one scale for each output channel.
        (last,) = interpreter.get_output_details()
        between = [d for d in interpreter.get_tensor_details() if d["index"] != last["index"] and d["name"]]
        assert {np.dtype(d["dtype"]).name for d in between} <= {"uint8", "int8", "int32"}
        assert sum(len(d["quantization_parameters"]["scales"]) == 128 for d in between) >= 4


def test_another_process_writes_the_same_int8_bytes_without_a_word(tmp_path, noise):
    """Nor does the ONNX exporter say one, and the terminal can be written to behind both."""
    code = """if True:
        import sys, logging
        import numpy as np, torch
        from students import create_student
        from export.onnx import export_onnx
        from export.tflite import export_tflite
        torch.manual_seed(0)
        model = create_student("tiny16")
        export_onnx(model, sys.argv[2] + ".onnx", 16)
        export_tflite(model, sys.argv[2], 16, "int8", np.load(sys.argv[1]))
        assert not logging.getLogger().handlers
        print("a word", flush=True)
    """
    np.save(tmp_path / "crops.npy", noise(70, 16))
    run = [sys.executable, "-c", code, tmp_path / "crops.npy", tmp_path / "other.tflite"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a word\n", "")
    torch.manual_seed(0)
    export_tflite(create_student("tiny16"), tmp_path / "s.tflite", 16, "int8", noise(70, 16))
    assert (tmp_path / "s.tflite").read_bytes() == (tmp_path / "other.tflite").read_bytes()


def test_ranges_do_not_shrink_with_more_batches(tmp_path, student, noise, embed):
    """The converter's own moving average keeps one part in twenty of what only a later batch shows."""
    model = student("tiny16")
    dim = noise(256, 16) // 8
    crops = np.concatenate([dim, noise(64, 16)])
    export_tflite(model, tmp_path / "s.tflite", 16, "int8", crops)
    found = _run(Interpreter(str(tmp_path / "s.tflite")), crops[-64:])
    assert _cosines(found, embed(model, crops[-64:])).min() > 0.98


@pytest.mark.parametrize(
    "crops",
    [None, np.zeros((8, 16, 16, 3), np.uint8), np.ones((8, 32, 32, 3), np.uint8), np.ones((8, 16, 16, 3))],
    ids=["none", "blank", "another size", "floats"],
)
def test_crops_that_do_not_fit_are_refused(tmp_path, student, crops):
    with pytest.raises(UserError, match="calibration"):
        export_tflite(student("tiny16"), tmp_path / "s.tflite", 16, "int8", crops)
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision_is_a_programming_error(tmp_path, student):
    with pytest.raises(ValueError, match="int4"):
        export_tflite(student("tiny16"), tmp_path / "s.tflite", 16, "int4")
