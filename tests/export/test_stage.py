import hashlib
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

import export
from export import sidecar, stage
from export.stage import How
from export.targets import Target
from faces import open_faces
from faces.align import crop
from faces.errors import UserError
from faces.files import sha256

pytestmark = pytest.mark.usefixtures("written_once")
ONNX = How(formats=["onnx"])


def _spoil(monkeypatch, change):
    """Make the ONNX writer change one weight of the file that it wrote."""
    written = stage.export_onnx

    def spoiled(model, path, px, **options):
        written(model, path, px, **options)
        proto = onnx.load(str(path))
        weight = max(proto.graph.initializer, key=lambda w: len(w.raw_data))
        values = onnx.numpy_helper.to_array(weight).copy()
        change(values)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(proto, str(path))

    monkeypatch.setattr(stage, "export_onnx", spoiled)


def _wreck(values):
    values[...] = -values


def test_rows_tell_the_files(exported, student, noise, card, subject, tmp_path):
    rows, _ = stage.export_model(subject(student("tiny16"), noise(256, 16), card), tmp_path, ONNX)
    (row,) = rows
    assert {"model", "path", "format", "precision", "bytes", "sha256", "parity", "seconds"} <= set(row)
    assert set(row["parity"]) == {"max_abs", "cosine_min", "faces", "passed", "reason", "accuracy"}
    assert row["parity"]["faces"] == 256
    data = (tmp_path / row["path"]).read_bytes()
    assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["student.onnx", "student.onnx.json"]
    # The same weights give the same bytes.
    assert row["sha256"] == sha256(exported / "student.onnx")


def test_real_faces_pass_the_gate(tmp_path, student, card, subject):
    faces = open_faces("orl")
    images = crop(faces.images, faces.landmarks, "arcface", 32)
    model = student("tiny32", seed=3)
    rows, _ = stage.export_model(subject(model, images, card), tmp_path, How())
    for row in rows:
        assert row["parity"]["passed"]
        assert "only" not in row["parity"]["reason"]
        found = export.load(tmp_path / row["path"]).embed(images[:5])
        assert abs(found - stage.reference_embeddings(model, images[:5])).max() < 1e-4


def test_a_wrong_weight_stops_the_stage_and_leaves_nothing(tmp_path, student, noise, card, subject, monkeypatch):
    images = noise(256, 16)
    stage.export_model(subject(student("tiny16"), images, card), tmp_path, ONNX)
    _spoil(monkeypatch, _wreck)
    with pytest.raises(UserError, match=r"student\.onnx differs from its model: least cosine \S+, below 0\.99999"):
        stage.export_model(subject(student("tiny16"), images, card), tmp_path, ONNX)
    assert not list(tmp_path.iterdir())  # nor the export of before, which is another model's by now


def test_what_cannot_be_made_leaves_the_file_of_before(tmp_path, student, noise, card, subject, monkeypatch):
    one = subject(student("tiny16"), noise(256, 16), card)
    stage.export_model(one, tmp_path, ONNX)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def missing(*_, **__):
        raise UserError("the exporter is not installed")

    monkeypatch.setattr(stage, "export_onnx", missing)
    how = How(formats=["tensorrt-rtx"], capabilities=["SM89"], report_misses=True)
    rows, misses = stage.export_model(one, tmp_path, how)
    assert rows == []
    # The engine is not built from a file that another export left there.
    assert [miss["reason"].partition(":")[0] for miss in misses] == [
        "the exporter is not installed",
        "student-fp32.tensorrt-rtx.engine is built from student.onnx, which could not be made",
    ]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_one_lost_channel_is_seen(tmp_path, student, noise, card, subject, monkeypatch):
    def lose(values):
        values[0] = 0

    _spoil(monkeypatch, lose)
    with pytest.raises(UserError, match="differs from its model"):
        stage.export_model(subject(student("tiny16"), noise(256, 16), card), tmp_path, ONNX)


@pytest.mark.parametrize(
    ("capability", "said"), [(None, "no NVIDIA GPU here"), ("SM90", "the GPU here is SM90, it is for SM89")]
)
def test_an_engine_for_other_gpus_is_not_run(tmp_path, student, noise, card, subject, gpu, capability, said):
    gpu(capability)
    how = How(formats=["tensorrt-rtx"], precisions=["fp32"], capabilities=["SM89"])
    rows, _ = stage.export_model(subject(student("tiny16"), noise(256, 16), card), tmp_path, how)
    engine = rows[-1]
    assert (engine["format"], engine["parity"]["passed"]) == ("tensorrt-rtx", None)
    assert engine["parity"]["reason"].startswith(f"not run: {said}; built from student.onnx")
    assert (tmp_path / engine["path"]).is_file()


def test_an_allowed_failure_is_recorded(tmp_path, student, noise, card, subject, monkeypatch):
    _spoil(monkeypatch, _wreck)
    images = noise(30, 16)
    how = How(formats=["onnx"], allow_failure=True)
    ((row,), _) = stage.export_model(subject(student("tiny16"), images, card), tmp_path, how)
    assert row["parity"]["passed"] is False
    found = sidecar.read(tmp_path / "student.onnx")
    assert found.parity_failure_allowed
    assert found.parity.passed is False
    assert "only 30 faces, 256 wanted" in found.parity.reason


def test_a_miss_says_whether_the_file_was_made(tmp_path, student, noise, card, subject, monkeypatch):
    _spoil(monkeypatch, _wreck)
    how = How(formats=["onnx"], precisions=["fp32", "int8"], report_misses=True)
    rows, misses = stage.export_model(subject(student("tiny16"), noise(256, 16), card), tmp_path, how)
    assert rows == []
    # Without calibration faces no int8 file can be.
    assert {miss["path"]: miss["differs"] for miss in misses} == {
        "student.onnx": True, "student-int8-cpu.onnx": False, "student-int8-tensorrt.onnx": False,
    }  # fmt: skip


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_tflite_is_not_compared_with_embeddings_of_length_1(tmp_path, student, noise, card, subject, metric):
    one = subject(student("tiny16"), noise(256, 16), card.model_copy(update={"metric": metric}))
    ((row,), _) = stage.export_model(one, tmp_path, How(formats=["tflite"], normalise=True))
    assert row["parity"]["passed"]
    assert row["parity"]["max_abs"] < 1e-4


def test_tflite_takes_no_alpha(tmp_path, student, noise, card, subject):
    one = replace(subject(student("tiny16"), noise(256, 16), card), alpha=np.full(256, 0.5, np.float32))
    with pytest.raises(UserError, match=r"student\.tflite cannot take an alpha with each face"):
        stage.export_model(one, tmp_path, How(formats=["tflite"]))
    assert not list(tmp_path.iterdir())


def test_an_engine_tells_how_its_file_was_calibrated(tmp_path, student, noise, card, subject):
    good, images, asked = student("tiny16", seed=5), noise(256, 16), []
    one = replace(
        subject(student("tiny16"), images, card), reference=stage.reference_embeddings(good, images),
        calibration=images, calibration_source="noise", aware=lambda *given: asked.append(given) or good,
    )  # fmt: skip
    how = How(formats=["tensorrt-rtx"], precisions=["int8"], capabilities=["SM89"], allow_failure=True)
    rows, _ = stage.export_model(one, tmp_path, how)
    assert len(asked) == 1
    found = [sidecar.read(tmp_path / row["path"]) for row in rows]
    assert [file.format for file in found] == ["onnx", "tensorrt-rtx"]
    assert [file.calibration.trained for file in found] == [True, True]
    assert [file.parity_failure_allowed for file in found] == [True, True]


def test_an_engine_is_attempted_once(tmp_path, student, noise, card, subject):
    one = replace(subject(student("tiny16"), noise(8, 16), card), aware=lambda *_: None)
    work = stage._Export(one, tmp_path, tmp_path, How())
    assert work._attempts(Target("tensorrt-rtx", "int8")) == [(False, False)]
    assert work._attempts(Target("onnx", "int8", "tensorrt")) == [(False, False), (True, False)]


def test_finer_roundings_are_tried_in_turn(tmp_path, student, noise, card, subject, monkeypatch):
    tried, asked, written, told, quantise = [], [], [], [], stage.quantize_onnx

    def aware(rounding, tick):
        asked.append(rounding)
        tick(3, 7)
        return student("tiny16", seed=len(asked))

    def spy(floats, path, crops, consumer, unsigned):
        tried.append((consumer, floats.name, unsigned))
        written.append(sha256(floats))
        quantise(floats, path, crops, consumer, unsigned)

    monkeypatch.setattr(stage, "quantize_onnx", spy)
    one = replace(
        subject(student("tiny16"), noise(64, 16), card),
        # What no file can be equal to.
        reference=np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32),
        calibration=noise(64, 16),
        calibration_source="noise",
        aware=aware,
    )
    how = How(formats=["onnx"], precisions=["int8"], allow_failure=True, tick=told.append)
    stage.export_model(one, tmp_path, how)
    assert told[0] == "student-int8-cpu.onnx: quantisation-aware fine-tuning, 3 of 7 steps"
    assert len(told) == 3
    plain, tuned = "fp32-for-int8.onnx", "aware-for-int8.onnx"
    assert tried == [
        ("cpu", plain, False), ("cpu", tuned, False), ("cpu", plain, True), ("cpu", tuned, True),
        ("tensorrt", plain, False), ("tensorrt", tuned, False),
    ]  # fmt: skip
    # Each is trained for the steps of its own file, and that student is what gets rounded.
    assert asked == [
        Target("onnx", "int8", consumer).rounding(unsigned) for consumer, name, unsigned in tried if name == tuned
    ]
    assert len(set(asked)) == len({one for one, (_, name, _) in zip(written, tried, strict=True) if name == tuned}) == 3


def test_of_attempts_that_all_miss_the_closest_is_kept(tmp_path, student, noise, card, subject, monkeypatch):
    """Plain, fine-tuned, unsigned, fine-tuned and unsigned: here the third is the best and the last the worst."""
    cosines = {(False, False): 0.9, (False, True): 0.97, (True, False): 0.95, (True, True): 0.6}
    tried, measured, quantise, judge = [], [], stage.quantize_onnx, stage.parity.judge

    def spy(floats, path, crops, consumer, unsigned):
        tried.append((floats.name.startswith("aware"), unsigned))
        quantise(floats, path, crops, consumer, unsigned)
        measured.append(sha256(path))

    def judged(found, reference, precision, metric):
        least = cosines[tried[-1]]
        update = {"cosine_min": least, "passed": False, "reason": f"least cosine {least}"}
        return judge(found, reference, precision).model_copy(update=update)

    monkeypatch.setattr(stage, "quantize_onnx", spy)
    monkeypatch.setattr(stage.parity, "judge", judged)
    one = replace(
        subject(student("tiny16"), noise(64, 16), card), calibration=noise(64, 16), calibration_source="noise",
        aware=lambda rounding, tick: student("tiny16", seed=5),
    )  # fmt: skip
    how = How(formats=["onnx"], precisions=["int8"], allow_failure=True)
    rows, _ = stage.export_model(one, tmp_path, how)
    cpu = next(row for row in rows if row["consumer"] == "cpu")
    assert cpu["parity"]["cosine_min"] == 0.97
    assert cpu["sha256"] == sha256(tmp_path / cpu["path"]) == measured[2] != measured[3]
    kept = sidecar.read(tmp_path / cpu["path"])
    assert (kept.file, kept.calibration.trained, kept.parity_failure_allowed) == (cpu["path"], False, True)
    with pytest.raises(UserError, match=r"differs from its model: least cosine 0\.97"):
        stage.export_model(one, tmp_path, replace(how, allow_failure=False))


def test_what_a_killed_run_left_goes_away(tmp_path, student, noise, card, subject):
    (tmp_path / ".unproved").mkdir()
    (tmp_path / ".unproved" / "student.onnx").write_text("half a file")
    stage.export_model(subject(student("tiny16"), noise(256, 16), card), tmp_path, ONNX)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["student.onnx", "student.onnx.json"]


def test_unknown_formats_are_told_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"unknown format 'coreml'\. Known: onnx, tflite"):
        stage.export_model(None, tmp_path / "new", How(formats=["onnx", "coreml"]))
    with pytest.raises(UserError, match=r"unknown precision 'int4'\. Known: fp32, fp16, int8"):
        stage.export_model(None, tmp_path / "new", How(precisions=["int4"]))
    assert not (tmp_path / "new").exists()


def test_reference_is_the_model_in_eval_mode(student, noise, embed):
    model, images = student("tiny16"), noise(10, 16)
    expected = embed(model, images)
    model.train()
    statistics = model.stem[1].running_mean.clone()
    assert np.allclose(stage.reference_embeddings(model, images, batch=3), expected, atol=1e-6)
    assert model.training
    assert torch.equal(model.stem[1].running_mean, statistics)
