import numpy as np
import onnx
import pytest

from export import parity, sidecar
from export.runtimes import Artifact
from faces.errors import UserError


def _rotated(reference, cosine):
    """Each row turned so that its cosine with the reference is exactly `cosine`."""
    rng = np.random.default_rng(1)
    unit = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    other = rng.normal(size=reference.shape)
    other -= (other * unit).sum(1, keepdims=True) * unit
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return cosine * unit + np.sqrt(1 - cosine**2) * other


@pytest.fixture
def reference():
    return np.random.default_rng(0).normal(size=(300, 128))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.99999), ("fp16", 0.9999), ("int8", 0.98)])
def test_each_precision_has_its_tolerance(reference, precision, tolerance):
    gap = 1 - tolerance
    good = parity.judge(_rotated(reference, tolerance + gap / 10), reference, precision)
    bad = parity.judge(_rotated(reference, tolerance - gap / 10), reference, precision)
    assert (good.passed, bad.passed) == (True, False)
    assert bad.cosine_min == pytest.approx(tolerance - gap / 10, abs=1e-9)
    assert f"below {tolerance}" in bad.reason


def test_one_bad_face_is_enough(reference):
    found = reference.copy()
    found[7] *= -1
    verdict = parity.judge(found, reference, "fp32")
    assert not verdict.passed
    assert verdict.cosine_min == pytest.approx(-1)
    assert verdict.max_abs == pytest.approx(2 * abs(reference[7]).max())


def test_few_faces_are_said(reference):
    verdict = parity.judge(reference[:40], reference[:40], "fp32")
    assert verdict.passed
    assert "only 40 faces, 256 wanted" in verdict.reason


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_values_without_a_direction_fail(reference, value):
    found = reference.copy()
    found[3] = value
    verdict = parity.judge(found, reference, "fp32")
    assert (verdict.passed, verdict.max_abs) == (False, None)
    assert "1 of 300 embeddings are zero or not finite" in verdict.reason


def test_a_graph_with_its_batch_baked_in_is_found(exported, noise, tmp_path):
    contract = sidecar.read(exported / "student.onnx")
    proto = onnx.load(str(exported / "student.onnx"))
    dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    dim.dim_value = 1
    onnx.save(proto, str(tmp_path / "fixed.onnx"))
    artifact = Artifact(tmp_path / "fixed.onnx", contract)
    assert artifact.embed(noise(1, 16)).shape == (1, 128)
    with pytest.raises(UserError, match="failed on 3 faces"):
        parity.check(artifact, np.ones((256, 128), np.float32), noise(256, 16))


def test_arrays_must_belong_together(exported, noise):
    artifact = Artifact(exported / "student.onnx", sidecar.read(exported / "student.onnx"))
    with pytest.raises(ValueError, match="5 images for 4"):
        parity.check(artifact, np.ones((4, 128), np.float32), noise(5, 16))
    with pytest.raises(ValueError, match="0 images"):
        parity.check(artifact, np.ones((0, 128), np.float32), noise(0, 16))
