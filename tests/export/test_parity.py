from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from export import parity, sidecar
from export.parity import Trial
from export.runtimes import Artifact, load
from export.sidecar import Gate, Parity
from faces import verification
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


@pytest.mark.parametrize(("scale", "passed"), [(1, True), (1 + 1e-4, True), (1.01, False), (0.98, False)])
def test_lengths_count_where_distances_are_compared(reference, scale, passed):
    found = reference.copy()
    found[5] *= scale
    assert parity.judge(found, reference, "fp32", "cosine").passed
    verdict = parity.judge(found, reference, "fp32", "euclidean")
    assert verdict.passed is passed
    assert verdict.cosine_min == pytest.approx(1)
    assert ("of other lengths" in verdict.reason) is not passed
    turned = _rotated(reference, 1 - 1.2e-5)
    assert not parity.judge(turned, reference, "fp32", "euclidean").passed


@pytest.mark.parametrize(
    ("profile", "count", "sizes"),
    [
        ((2, 8, 64), 300, [3, 64, 64, 64, 64, 41]),
        ((2, 8, 64), 68, [3, 64, 2]),
        ((8, 8, 8), 20, [8, 8, 8]),
        ((8, 16, 32), 261, [32] * 8 + [8]),
        ((300, 300, 300), 256, [300]),
    ],
)
def test_an_engine_runs_in_the_batches_of_its_profile(exported, noise, monkeypatch, profile, count, sizes):
    """The last one filled up with faces that are left out again. An ONNX file stands for the engine."""
    artifact, images = load(exported / "student.onnx"), noise(count, 16)
    expected = artifact.embed(images)
    seen, real = [], artifact.run
    monkeypatch.setattr(artifact, "run", lambda part, alpha: (seen.append(len(part)), real(part, alpha))[1])
    engine = SimpleNamespace(profile=profile)
    monkeypatch.setattr(artifact, "sidecar", artifact.sidecar.model_copy(update={"engine": engine}))
    assert abs(parity.run(artifact, images) - expected).max() < 1e-5
    assert seen == sizes
    seen.clear()
    assert artifact.embed(images[:2]).shape == (2, 128)
    assert seen == [max(2, profile[0])]


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
        parity.run(artifact, noise(256, 16))


def test_arrays_must_belong_together(reference):
    with pytest.raises(ValueError, match=r"\(5, 128\), reference \(4, 128\)"):
        parity.judge(reference[:5], reference[:4], "fp32")
    with pytest.raises(ValueError, match=r"\(0, 128\)"):
        parity.judge(reference[:0], reference[:0], "fp32")


def _trial(people, faces, pairs):
    identities = np.repeat(np.arange(people), faces)
    found = verification.make_pairs(identities, 0, pairs)
    return Trial(np.zeros((len(identities), 16, 16, 3), np.uint8), identities, found, "same@16", "drawn")


def test_accuracy_is_that_of_a_plain_count_and_decides_of_int8_alone():
    rng = np.random.default_rng(0)
    trial = _trial(80, 14, 3000)
    centres = rng.normal(size=(80, 32))
    model = centres[trial.identities] + rng.normal(size=(len(trial.identities), 32))
    worse = model + 0.9 * rng.normal(size=model.shape)
    same = parity.judge(model, model, "int8")
    lost = parity.with_accuracy(same, worse, model, trial, "cosine", "int8")
    assert lost.accuracy.decides
    assert not lost.passed
    scores = verification.similarity(worse[trial.pairs.a], worse[trial.pairs.b], "cosine")
    right = 0
    for fold in range(10):
        held = trial.pairs.fold == fold
        cut = verification.best_threshold(scores[~held], trial.pairs.same[~held])
        right += ((scores[held] >= cut) == trial.pairs.same[held]).sum()
    assert lost.accuracy.accuracy == pytest.approx(100 * right / len(scores))
    assert lost.accuracy.difference == pytest.approx(lost.accuracy.accuracy - lost.accuracy.model)
    assert lost.accuracy.difference_ci95[0] < lost.accuracy.difference < lost.accuracy.difference_ci95[1]
    # A float file reports the same and passes by its cosine; so does int8 that equals its model.
    assert parity.with_accuracy(same, worse, model, trial, "cosine", "fp16").passed
    assert parity.with_accuracy(same, model, model, trial, "cosine", "int8").passed


@pytest.mark.parametrize(
    ("cosine", "low", "decides", "excess"),
    [(0.98, -0.2, True, 1), (0.96, -0.2, True, 2), (0.99, -1.5, True, 3), (0.99, -1.5, False, 0.5), (1, 0.4, True, 0)],
)
def test_the_excess_is_that_of_the_worse_criterion(cosine, low, decides, excess):
    gate = Gate(protocol="same@16", data="d", pairs=9, accuracy=80, ci95=(79, 81), model=80, difference=0,
                difference_ci95=(low, 1), decides=decides)  # fmt: skip
    told = Parity(max_abs=0.1, cosine_min=cosine, faces=256, passed=None, reason="", accuracy=gate)
    assert parity.excess(told, "int8") == pytest.approx(excess)
    assert parity.excess(told, "fp16") == pytest.approx((1 - cosine) / 0.0001)
    assert parity.excess(told.model_copy(update={"accuracy": None}), "int8") == pytest.approx((1 - cosine) / 0.02)
    assert parity.excess(told.model_copy(update={"cosine_min": None}), "int8") == np.inf


def test_few_pairs_do_not_decide():
    rng = np.random.default_rng(0)
    trial = _trial(20, 5, 100)
    model = rng.normal(size=(20, 8))[trial.identities] + rng.normal(size=(100, 8))
    found = parity.with_accuracy(
        parity.judge(model, model, "int8"), rng.normal(size=model.shape), model, trial, "cosine", "int8"
    )
    assert (found.passed, found.accuracy.decides) == (True, False)
    assert "3,000 are needed to decide by it" in found.reason
