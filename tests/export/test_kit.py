import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import export
from export import kit as kits
from export import parity
from export.__main__ import main
from export.kit import Bench, Kit, degraded_crops, read_kit, student_crops, write_kit
from export.sidecar import Alpha
from export.stage import Subject, reference_embeddings
from export.targets import Rounding
from faces import open_faces
from faces.degrade import Degradation
from faces.errors import UserError
from faces.files import sha256
from students.student import count_macs, count_parameters

pytestmark = pytest.mark.usefixtures("written_once")


@pytest.fixture(scope="module")
def faces():
    return open_faces("orl")


@pytest.fixture
def folder(tmp_path, faces, student):
    """A run folder as the pipeline's export stage leaves it, with a student of random weights."""
    people = faces.identities
    (tmp_path / "work").mkdir()
    faces.subset(np.flatnonzero(people < 30)).save(tmp_path / "work/train.npz")
    faces.subset(np.flatnonzero(people >= 30)).save(tmp_path / "work/test.npz")
    model = student("tiny16")
    save_file(model.state_dict(), tmp_path / "student.safetensors")
    write_kit(
        tmp_path,
        Kit(
            student="tiny16", student_file="student.safetensors", student_params=count_parameters(model),
            student_macs=count_macs(model, 16), teacher="dlib_resnet", teacher_weights=None, teacher_tuned=None,
            teacher_params=5_600_000, teacher_macs=None,
            teacher_card={"name": "dlib_resnet", "bootstrap": False, "licence": "CC0"},
            data={"name": "orl", "licence": "research"}, train="work/train.npz", train_faces=200,
            test="work/test.npz", test_name="orl", pairs=None, seed=0, margin=0.125,
            degradation=Degradation(),
        ),
    )  # fmt: skip
    return tmp_path


def test_the_students_trial_are_unseen_people_and_the_rest_counts_for_numbers_alone(folder, faces):
    subject = Bench(folder, read_kit(folder)).student()
    test = faces.subset(np.flatnonzero(faces.identities >= 30))
    assert len(subject.trial.images) == 256
    assert np.array_equal(subject.trial.images[: len(test)], student_crops(test, None, 16))
    assert (subject.trial.identities[len(test) :] == -1).all()
    assert subject.trial.pairs is not None
    assert max(subject.trial.pairs.a.max(), subject.trial.pairs.b.max()) < len(test)
    assert subject.calibration.shape == (200, 16, 16, 3)  # the virtual faces behind the 200 are left out
    assert "200 faces of orl's training people" in subject.calibration_source


def test_a_fixed_alpha_is_priced_on_the_faces_that_the_pairs_name(folder, card, monkeypatch):
    bench = Bench(folder, read_kit(folder))
    people = bench.test.identities
    bench.test = replace(bench.test, identities=np.where(np.arange(len(people)) % 3, people, -1))
    trial = bench._trial(256, "full", lambda faces: np.asarray(faces.images)[:, ::16, ::16])
    assert len(trial.images) - trial.filled == len(people)
    alpha = Alpha(policy="mean", value=0.5, input=None, source="made", price=())
    monkeypatch.setattr(kits.merge, "choose_alpha", lambda *_: alpha)
    for name in ("merged", "at_alpha"):
        monkeypatch.setattr(kits.merging, name, lambda *_: None)
    monkeypatch.setattr(kits, "reference_embeddings", lambda *_: None)
    told = []
    monkeypatch.setattr(kits.merge, "price", lambda *given: told.append(given) or ())
    bench._at("mean", None, Subject("teacher", None, card, trial), trial.images)
    ((_, _, images, pairs, identities),) = told
    assert len(images) == len(identities) == len(people)
    assert np.array_equal(images[pairs.a], trial.images[pairs.a])
    assert np.array_equal(identities[pairs.a] == identities[pairs.b], pairs.same)


def test_calibration_is_degraded_and_the_same_for_a_seed(faces):
    one, same, other = (degraded_crops(faces, 16, 50, 0.125, Degradation(), seed) for seed in (0, 0, 1))
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_exports_again_with_one_command(folder):
    done = CliRunner().invoke(main, [str(folder), "--format", "onnx", "--precision", "fp32,fp16"])
    assert done.exit_code == 0, done.output
    for name in ("student.onnx", "student-fp16.onnx"):
        assert name in done.output
        contract = export.load(folder / name).sidecar
        assert contract.sha256 == sha256(folder / name)
        assert contract.parity.passed
        assert contract.parity.accuracy.pairs > 100
        assert contract.thresholds["1e-2"].value is not None or "impostor pairs" in contract.thresholds["1e-2"].reason
        assert contract.input.dtype == "float32"
    assert "trtexec" in done.output


def test_bytes_in_and_unit_embeddings_out(folder, student, embed):
    asked = [str(folder), "--format", "onnx", "--uint8-input", "--normalise"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    artifact = export.load(folder / "student.onnx")
    assert (artifact.sidecar.input.dtype, artifact.sidecar.input.layout) == ("uint8", "NHWC")
    assert artifact.sidecar.normalised
    images = Bench(folder, read_kit(folder)).student().trial.images[:7]
    expected = embed(student("tiny16"), images)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(artifact.embed(images) - expected).max() < 1e-5


def test_the_mirror_image_is_added_in_files_of_their_own(folder, student, embed):
    done = CliRunner().invoke(main, [str(folder), "--no-student", "--mirror", "--precision", "fp32,int8"])
    assert done.exit_code == 0, done.output
    names = {"student-mirror.onnx", "student-mirror.tflite", "student-mirror-int8.tflite",
             "student-mirror-int8-cpu.onnx", "student-mirror-int8-tensorrt.onnx"}  # fmt: skip
    assert {file.name for file in folder.glob("student*") if file.suffix in (".onnx", ".tflite")} == names
    images = Bench(folder, read_kit(folder)).student().trial.images[:40]
    expected = embed(student("tiny16"), images) + embed(student("tiny16"), np.ascontiguousarray(images[:, :, ::-1]))
    for name in ("student-mirror.onnx", "student-mirror.tflite"):
        found = export.load(folder / name)
        assert (found.sidecar.model, found.sidecar.parameters) == ("tiny16 and mirror image", 2 * 108_944)
        np.testing.assert_allclose(found.embed(images), expected, atol=1e-4 * np.abs(expected).max())
    rounded = export.load(folder / "student-mirror-int8.tflite").embed(images)
    cosines = (rounded * expected).sum(1) / np.linalg.norm(rounded, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.95


def test_what_is_trained_with_the_rounding_is_mirrored_too(folder, monkeypatch):
    trained = []
    monkeypatch.setattr(kits, "quantisation_aware", lambda student, *_, **__: trained.append(student) or student)
    subject = Bench(folder, read_kit(folder)).student(mirror=True)
    found = subject.aware(Rounding(), lambda *_: None)
    images = subject.trial.images[:3]
    assert len(trained) == 1
    np.testing.assert_allclose(reference_embeddings(found, images), reference_embeddings(subject.model, images))


def test_a_miss_is_told_behind_the_table_and_stops_no_other_file(folder, monkeypatch):
    monkeypatch.setitem(parity.TOLERANCE, "fp16", 1.5)
    asked = [str(folder), "--format", "onnx", "--precision", "fp16,fp32"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 2
    assert "missed: student-fp16.onnx differs from its model: least cosine" in done.stdout.replace("\n", " ")
    assert done.stderr == (
        "error: student-fp16.onnx: missed, as the table says; --allow-parity-failure keeps a file that differs\n"
    )
    assert sorted(file.name for file in folder.glob("student*.onnx*")) == ["student.onnx", "student.onnx.json"]
    assert CliRunner().invoke(main, [*asked, "--allow-parity-failure"]).exit_code == 0


def test_faces_of_the_run_that_are_cut_short(folder):
    file = folder / "work/test.npz"
    file.write_bytes(file.read_bytes()[:100_000])
    done = CliRunner().invoke(main, [str(folder)])
    assert (done.exit_code, done.stderr) == (
        2,
        f"error: {file} is damaged: run compress.pipeline in this folder again\n",
    )


@pytest.mark.parametrize("told", ["cf" * 32, None])
def test_files_of_the_run_that_its_results_no_longer_tell_of(folder, tmp_path, told):
    command = [str(folder), "--format", "onnx"]
    results = folder / "results.json"

    def export_again(*more):
        done = CliRunner().invoke(main, [*command, *more])
        assert done.exit_code == 0, done.output
        return [line for line in done.stdout.splitlines() if line.startswith("note:")]

    assert export_again() == []
    artifacts = [{"path": "student.onnx", "sha256": told or sha256(folder / "student.onnx")}]
    results.write_text(json.dumps({"artifacts": artifacts}))
    (*note,) = export_again()
    assert [line.partition(";")[0] for line in note] == (
        ["note: results.json, report.html and MODEL_CARD.md tell of other files than these: student.onnx"]
        if told
        else []
    )
    assert export_again("--out", str(tmp_path / "out")) == []
    results.write_text("[]")
    assert export_again() == []


def test_an_alpha_for_a_teacher_without_adapters(folder, monkeypatch):
    monkeypatch.setattr(kits.Bench, "teacher", lambda self, policy: replace(self.student(), name="teacher"))
    command = [str(folder), "--no-student", "--export-teacher", "--format", "onnx"]
    note = "note: --alpha 0.3 changes nothing: tiny16 has no twin adapters\n"
    assert note in CliRunner().invoke(main, [*command, "--alpha", "0.3"]).stdout
    assert "note:" not in CliRunner().invoke(main, command).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "pdf"], "unknown format 'pdf'"),
        (["--precision", "fp8"], "unknown precision 'fp8'"),
        (["--batch", "3,2,1"], "--batch 3,2,1: it must rise"),
        (["--batch", "many"], "--batch takes MIN,OPT,MAX"),
        (["--batch", "²,³,³"], "--batch takes MIN,OPT,MAX"),
        (["--format", ""], "--format '' names nothing"),
        (["--precision", ","], "--precision ',' names nothing"),
        (["--export-teacher", "--alpha", "best"], "alpha 'best': give a number in [0, 1]"),
        (["--out", f"{__file__}/new"], "is a file: choose another --out"),
        (["--no-student"], "nothing to export"),
        (["--batch", "1,2,2147483648"], "stay below 2,147,483,648"),
        (["--format", "tensorrt-rtx", "--capability", "SM42"], "unknown compute capability 'SM42'"),
        (["--alpha", "0.3"], "--alpha changes nothing without --export-teacher"),
        (["--capability", "SM89"], "--capability changes nothing without --format tensorrt-rtx"),
        (["--format", "tflite", "--normalise"], "--normalise changes nothing without another --format than tflite"),
        (["--format", "tflite", "--uint8-input"], "--uint8-input changes nothing without another"),
        (["--format", "tflite", "--batch", "1,2,3"], "--batch changes nothing without another"),
    ],
)
def test_mistakes_are_told(folder, arguments, said):
    done = CliRunner().invoke(main, [str(folder), *arguments])
    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert not list(folder.glob("student*.*.json"))


def test_a_folder_that_is_no_run(tmp_path):
    done = CliRunner().invoke(main, [str(tmp_path)])
    assert done.exit_code == 2
    assert "run compress.pipeline up to its export stage first" in done.output


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"student": "../../x"}'])
def test_a_damaged_kit(folder, text):
    (folder / kits.KIT).write_text(text)
    with pytest.raises(UserError, match=r"export\.json is damaged"):
        read_kit(folder)


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"degradation": {"rotation": -1}}, "rotation"),
        ({"degradation": {"fog": 1}}, "fog"),
    ],
)
def test_a_kit_whose_values_are_none(folder, changed, where):
    file = folder / kits.KIT
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(UserError, match=rf"export\.json is damaged or of another version \(.*{where}: "):
        read_kit(folder)


def test_weights_of_another_student(folder):
    save_file({"x": torch.zeros(3)}, folder / "student.safetensors")
    with pytest.raises(UserError, match=r"student\.safetensors does not hold the weights of a tiny16"):
        Bench(folder, read_kit(folder)).student()


def test_a_student_trained_since_the_last_export(folder, student):
    kit = read_kit(folder).model_copy(update={"student_sha256": sha256(folder / "student.safetensors")})
    write_kit(folder, kit)
    Bench(folder, read_kit(folder)).student()
    save_file(student("tiny16", seed=9).state_dict(), folder / "student.safetensors")
    with pytest.raises(UserError, match=r"student\.safetensors was trained anew since the run's last export"):
        Bench(folder, read_kit(folder)).student()


@pytest.mark.parametrize(
    ("changed", "named"), [({}, None), ({"teacher_card": {"name": "x", "bootstrap": True, "licence": "x"}}, "orl")]
)
def test_a_teacher_names_the_data_that_it_learnt_from_alone(folder, changed, named):
    kit = Kit.model_validate(read_kit(folder).model_dump() | changed)
    data = Bench(folder, kit).teacher().card.data
    assert (data and data.name) == named


@pytest.mark.slow
def test_every_format_and_the_teacher_by_one_command(folder):
    formats, precisions = "onnx,tflite,tensorrt-rtx", "fp32,fp16,int8"
    command = [sys.executable, "-m", "export", str(folder), "--format", formats, "--precision", precisions,
               "--export-teacher", "--capability", "SM86"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "300"})
    assert done.returncode == 0, done.stderr
    files = {
        file.name.removesuffix(".json"): json.loads(file.read_text())
        for file in folder.glob("*.json") if file.name != kits.KIT
    }  # fmt: skip
    for model in ("student", "teacher"):
        for one in (".onnx", "-fp16.onnx", "-fp32.tensorrt-rtx.engine", "-fp16.tensorrt-rtx.engine"):
            assert f"{model}{one}" in files
    wanted = {".tflite", "-fp16.tflite", "-int8.tflite", "-int8-cpu.onnx", "-int8-tensorrt.onnx",
              "-int8.tensorrt-rtx.engine"}  # fmt: skip
    assert {f"student{one}" for one in wanted} <= set(files)
    for name, told in files.items():
        assert told["sha256"] == sha256(folder / name)
        assert name in done.stdout.replace("\n", "")
        if name.endswith(".engine"):
            assert told["parity"]["passed"] is None
            assert "no NVIDIA GPU" in told["parity"]["reason"]
            assert told["engine"]["onnx_sha256"] == sha256(folder / told["engine"]["onnx"])
        else:
            assert told["parity"]["passed"]
    assert files["student-int8.tflite"]["bytes"] <= 155_000
    assert files["student-int8-cpu.onnx"]["bytes"] <= 150_000
    assert files["student-int8.tflite"]["input"]["scale"] == pytest.approx(1 / 255)
