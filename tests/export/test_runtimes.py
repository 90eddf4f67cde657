import subprocess
import sys
import types

import numpy as np
import pytest

import export
from export import runtimes, sidecar
from faces.errors import UserError


@pytest.mark.parametrize("name", ["student.onnx", "student.tflite"])
def test_embeds_bytes_as_the_model_does(exported, student, noise, embed, name):
    images = noise(67, 16)
    artifact = export.load(exported / name, threads=2)
    found = artifact.embed(images)
    assert found.dtype == np.float32
    assert abs(found - embed(student("tiny16"), images)).max() < 1e-5
    # In chunks of any size, and after a change of the batch size.
    assert abs(artifact.embed(images, batch=5) - found).max() < 1e-5
    assert artifact.embed(images[:0]).shape == (0, 128)
    with pytest.raises(ValueError, match="batch 0"):
        artifact.embed(images, batch=0)
    assert artifact.runtime.split()[0] in ("onnxruntime", "ai-edge-litert")


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((2, 16, 16, 3), np.float32), "float32"),
        (np.zeros((2, 3, 16, 16), np.uint8), "(2, 3, 16, 16)"),
        (np.zeros((16, 16, 3), np.uint8), "(16, 16, 3)"),
        (np.zeros((2, 32, 32, 3), np.uint8), "(2, 32, 32, 3)"),
        ([[1, 2], [3, 4]], "list"),
    ],
)
def test_other_images_are_refused(exported, images, found):
    with pytest.raises(UserError, match=r"student\.onnx takes uint8 RGB faces of shape \(N, 16, 16, 3\)") as told:
        export.load(exported / "student.onnx").embed(images)
    assert found in str(told.value)


def test_an_output_that_the_file_lacks_is_told(exported):
    contract = sidecar.read(exported / "student.onnx").model_copy(update={"output": "logits"})
    with pytest.raises(UserError, match=r"student\.onnx: its outputs are \['embedding'\], its sidecar names 'logits'"):
        runtimes.Artifact(exported / "student.onnx", contract)


@pytest.mark.parametrize("name", ["student.onnx", "student.tflite"])
def test_needs_no_torch_and_says_nothing(exported, name):
    code = (
        "import sys, numpy as np, export\n"
        f"found = export.load({str(exported / name)!r}).embed(np.zeros((3, 16, 16, 3), np.uint8))\n"
        "assert found.shape == (3, 128)\n"
        "heavy = {'torch', 'cv2', 'dlib', 'litert_torch', 'tensorflow', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_tflite_runtimes_are_tried_in_order(monkeypatch):
    package, module = types.ModuleType("tflite_runtime"), types.ModuleType("tflite_runtime.interpreter")
    package.__version__, module.Interpreter = "2.14.0", object()
    monkeypatch.setitem(sys.modules, "tflite_runtime", package)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", module)
    assert runtimes._tflite_runtime() == (module.Interpreter, "tflite-runtime 2.14.0")
    for missing in ("tflite_runtime", "ai_edge_litert", "tensorflow.lite.python"):
        monkeypatch.setitem(sys.modules, f"{missing}.interpreter", None)
    with pytest.raises(UserError, match=r"tflite-runtime, ai-edge-litert, tensorflow.*pip install ai-edge-litert"):
        runtimes._tflite_runtime()


def test_a_missing_onnxruntime_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        export.load(exported / "student.onnx")
