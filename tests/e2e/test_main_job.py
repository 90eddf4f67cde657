"""The main job as a user runs it, on a few ORL faces, with the dlib teacher."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import export
from compress import results
from compress.pipeline import STAGES, main
from compress.zoo import main as zoo_main
from export import sidecar
from faces.align import crop
from faces.dataset import Faces
from faces.degrade import resize
from faces.files import sha256
from faces.sources import orl
from faces.sources.record import decode
from faces.verification import make_pairs
from students.registry import create_student, zoo_file

ROOT = Path(__file__).parents[2]
SMALL = {
    "distill.samples": 5120, "distill.batch": 128, "adapt.steps": 30, "evaluate.px": [16, 8], "evaluate.most": 30,
    "benchmark.batches": [1, 8], "data.virtual": 20,
}  # fmt: skip
NAMES = [stage.name for stage in STAGES]


def settings(**more):
    values = SMALL | {key.replace("_", ".", 1): value for key, value in more.items()}
    return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Eight ORL people with six faces each, as PNG files in an identity folder."""
    folder = tmp_path_factory.mktemp("data") / "people"
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if int(person[1:]) <= 8 and int(shot) <= 6:
            (folder / person).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / person / f"{shot}.png"), decode(record.data))
    return folder


def command(people, out, *more):
    return ["--teacher", "dlib_resnet", "--student", "tiny16", "--data", str(people), "--out", str(out),
            "--teacher-method", "none", *more]  # fmt: skip


def subprocess_of(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "compress.pipeline", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=3600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ended(people, tmp_path_factory):
    """The run folder of one run from beginning to end, which no test changes."""
    out = tmp_path_factory.mktemp("run") / "out"
    done = subprocess_of(*command(people, out, *settings()))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line.split()[0] for line in done.stderr.splitlines() if line.strip()]
    assert [line for line in lines if line in NAMES] == NAMES  # one line a stage, in their order
    return out


@pytest.fixture
def copy(ended, tmp_path):
    """A copy of that folder, to go on in."""
    return Path(shutil.copytree(ended, tmp_path / "copy"))


def again(people, out, *more):
    """The command in this process, which spares the imports."""
    done = CliRunner().invoke(main, command(people, out, *more))
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def records(out):
    return {file.stem: file.read_bytes() for file in (out / "stages").iterdir()}


def files(out):
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def changed(before, after):
    """Stages whose record is not what it was, in their order."""
    assert set(before) <= set(after)
    return [name for name in NAMES if after.get(name) != before.get(name)]


def test_results_are_valid_and_whole(ended, people):
    found = results.load(ended / "results.json")
    assert (found.teacher.name, found.teacher.bootstrap, found.teacher.method) == ("dlib_resnet", False, "none")
    assert (found.student.name, found.student.mode, found.student.loss) == ("tiny16", "sc", "relational")
    network = create_student("tiny16")
    assert found.student.params <= sum(p.numel() for p in network.parameters())
    rows = {(row.model, row.protocol) for row in found.accuracy}
    protocols = ["full", "same@16", "cross@16", "same@8", "cross@8"]
    assert {(model, protocol) for model in ("teacher", "student") for protocol in protocols} <= rows
    assert {("student.onnx", "same@16"), ("student.tflite", "same@16")} <= rows
    assert {row.data for row in found.accuracy} == {str(people)}
    assert {(row.pairs, row.folds) for row in found.accuracy} == {(60, 10)}
    assert list(found.seconds) == NAMES[:-1]
    assert all(value > 0 for value in found.seconds.values())
    assert {row.batch for row in found.throughput} == {1, 8}
    assert found.data.public.identities == 8
    assert found.data.split.test_identities == 2
    assert found.data.split.train_faces + found.data.split.test_faces == found.data.public.faces == 48
    assert found.data.split.virtual_faces == 20
    assert found.run.seeds == {"run": 0}
    assert "compress.pipeline" in found.run.command
    assert found.run.config["distill"]["samples"] == 5120


def test_the_artifacts_rows_are_those_of_the_student(ended):
    found = results.load(ended / "results.json")
    by_model = {row.model: row for row in found.accuracy if row.protocol == "same@16"}
    for artifact in found.artifacts:
        assert by_model[artifact.path].accuracy == pytest.approx(by_model["student"].accuracy, abs=2)


def test_every_artifact_is_there_proved_and_described(ended):
    found = results.load(ended / "results.json")
    assert [row.format for row in found.artifacts] == ["onnx", "tflite"]
    for artifact in found.artifacts:
        file = ended / artifact.path
        assert (file.stat().st_size, sha256(file)) == (artifact.bytes, artifact.sha256)
        assert artifact.parity.passed is True
        assert artifact.parity.cosine_min >= 0.99999
        contract = sidecar.read(file)
        assert contract.sha256 == artifact.sha256
        assert contract.model == "tiny16"
        assert contract.teacher.name == "dlib_resnet"
        assert not contract.parity_failure_allowed
    assert not list(ended.glob(".unproved"))


def test_training_and_test_people_are_different(ended):
    split = json.loads((ended / "split.json").read_text())
    assert (len(split["train"]["identities"]), len(split["test"]["identities"])) == (6, 2)
    assert not set(split["train"]["identities"]) & set(split["test"]["identities"])
    assert not set(split["train"]["keys"]) & set(split["test"]["keys"])
    people_of = {part: {key.split("/")[1] for key in split[part]["keys"]} for part in split}
    assert not people_of["train"] & people_of["test"]
    train, test = (Faces.load(ended / f"work/{part}.npz") for part in ("train", "test"))
    assert list(test.keys) == split["test"]["keys"]
    assert list(train.keys)[: len(split["train"]["keys"])] == split["train"]["keys"]


def test_the_artifacts_embed_as_the_student_does(ended):
    test = Faces.load(ended / "work/test.npz")
    faces = resize(crop(test.images, test.landmarks, "arcface"), 16)
    student = create_student("tiny16")
    student.load_state_dict(load_file(ended / "student.safetensors"))
    with torch.inference_mode():
        wanted = student.eval()(torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 255).numpy()
    assert np.linalg.norm(wanted[0] - wanted[-1]) > 1e-2 * np.linalg.norm(wanted[0])
    for name in ("student.onnx", "student.tflite"):
        np.testing.assert_allclose(export.load(ended / name).embed(faces), wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_students_accuracy_is_that_of_a_naive_count(ended):
    """Face by face from the files alone: crops, embeddings, cosines, the best threshold of the other folds."""
    test = Faces.load(ended / "work/test.npz")
    crops = crop(test.images, test.landmarks, "arcface")
    full, low = resize(crops, 16), resize(resize(crops, 8), 16)
    artifact = export.load(ended / "student.onnx")
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(artifact.embed, (full, low)))
    pairs = make_pairs(test.identities, 0, 30, 10)
    scores = np.array([first[a] @ second[b] for a, b in zip(pairs.a, pairs.b, strict=True)])
    right = 0
    for fold in range(10):
        inside = pairs.fold == fold
        best = max((-2, *scores), key=lambda t: ((scores[~inside] > t) == pairs.same[~inside]).sum())
        right += ((scores[inside] > best) == pairs.same[inside]).sum()
    found = results.load(ended / "results.json").accuracy
    row = next(row for row in found if (row.model, row.protocol) == ("student", "cross@8"))
    # The threshold lies somewhere between two scores: a pair of another fold may fall in between.
    assert row.accuracy == pytest.approx(100 * right / len(scores), abs=2 * 100 / len(scores))


def test_the_targets_are_those_of_the_adapted_teacher(ended):
    train = Faces.load(ended / "work/train.npz")
    features, targets = (np.load(ended / f"work/{name}.npy") for name in ("features", "targets"))
    assert features.shape == targets.shape == (len(train), 128)
    np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1, atol=1e-5)


def test_the_report_has_the_numbers_and_needs_no_other_file(ended):
    found, page = results.load(ended / "results.json"), (ended / "report.html").read_text()
    for model in ("teacher", "student"):
        row = next(row for row in found.accuracy if (row.model, row.protocol) == (model, "same@16"))
        assert f"{row.accuracy:.1f}" in page
    for artifact in found.artifacts:
        assert artifact.path in page
        assert artifact.sha256[:12] in page
    assert 'src="http' not in page
    assert "<link" not in page
    assert "bootstrap" not in page.lower()
    assert (ended / "MODEL_CARD.md").read_text().startswith("# ")


def test_the_training_curve_is_kept(ended):
    lines = (ended / "curves.csv").read_text().splitlines()
    assert lines[0] == "step,lr,loss,class,mimic"
    assert lines[-1].split(",")[0] == "40"  # 5120 / 128
    losses = [float(line.split(",")[2]) for line in lines[1:]]
    assert losses[-1] < losses[0]


def test_the_same_command_does_nothing_again(ended, people):
    before, began = files(ended), time.monotonic()
    done = subprocess_of(*command(people, ended, *settings()))
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 30
    assert done.stderr.count("done before") == len(NAMES)
    after = files(ended)
    assert {name for name in after if after[name] != before.get(name)} == {"run.log"}
    assert set(before) == set(after)


def test_the_report_alone(copy, people):
    before = files(copy)
    (copy / "stages/report.json").unlink()
    (copy / "report.html").unlink()
    again(people, copy, *settings(), "--stages", "report")
    assert changed({name: before[f"stages/{name}.json"] for name in NAMES}, records(copy)) == ["report"]
    assert json.loads((copy / "results.json").read_text())["accuracy"] == json.loads(before["results.json"])["accuracy"]
    assert (copy / "report.html").is_file()


def test_a_later_stage_is_refused_with_settings_that_were_not_run(copy, people):
    before = records(copy)
    arguments = command(people, copy, *settings(distill_mode="c"), "--stages", "evaluate,report")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "stage evaluate needs export first" in done.stderr
    assert records(copy) == before


def test_fresh_does_everything_again_and_gives_the_same_student(copy, ended, people):
    before = records(copy)
    again(people, copy, *settings(), "--fresh", "--stages", "data,teacher,adapt,distill")
    assert set(records(copy)) == set(NAMES[:4])
    assert changed({name: before[name] for name in NAMES[:4]}, records(copy)) == NAMES[:4]
    assert not (copy / "results.json").exists()
    assert (copy / "student.safetensors").read_bytes() == (ended / "student.safetensors").read_bytes()


def test_another_seed_gives_another_student(copy, ended, people):
    again(people, copy, *settings(), "--seed", "1", "--stages", "data,teacher,adapt,distill")
    assert (copy / "student.safetensors").read_bytes() != (ended / "student.safetensors").read_bytes()
    assert (copy / "split.json").read_bytes() != (ended / "split.json").read_bytes()


def test_going_back_to_earlier_settings_brings_their_student_back(copy, ended, people):
    stages = ("--stages", "data,teacher,adapt,distill")
    again(people, copy, *settings(distill_mode="c"), *stages)
    assert (copy / "student.safetensors").read_bytes() != (ended / "student.safetensors").read_bytes()
    assert (copy / "curves.csv").read_bytes() != (ended / "curves.csv").read_bytes()
    again(people, copy, *settings(), *stages)
    for name in ("student.safetensors", "curves.csv"):
        assert (copy / name).read_bytes() == (ended / name).read_bytes()


def test_other_crops_of_the_same_files_are_embedded_anew(copy, ended, people):
    again(people, copy, *settings(data_aligned=True), "--stages", "data,teacher")
    assert Faces.load(copy / "work/train.npz").keys == Faces.load(ended / "work/train.npz").keys
    assert np.abs(np.load(copy / "work/features.npy") - np.load(ended / "work/features.npy")).max() > 1e-2


@pytest.mark.parametrize(
    ("mode", "loss", "curve"),
    [
        ("c", "relational", "step,lr,loss,class"),
        ("s", "relational", "step,lr,loss,mimic"),
        ("dc", "relational", "step,lr,loss,class,mimic"),
        ("sc", "regression", "step,lr,loss,class,mimic"),
    ],
)
def test_the_other_modes_and_the_other_loss(copy, ended, people, mode, loss, curve):
    before = records(copy)
    more = settings(distill_mode=mode, distill_loss=loss, export_formats=["onnx"])
    again(people, copy, *more)
    found = results.load(copy / "results.json")
    assert (found.student.mode, found.student.loss) == (mode, "none" if mode == "c" else loss)
    assert changed(before, records(copy)) == NAMES[NAMES.index("distill") :]
    assert (copy / "curves.csv").read_text().splitlines()[0] == curve
    assert (copy / "student.safetensors").read_bytes() != (ended / "student.safetensors").read_bytes()
    shared = [row for row in found.accuracy if row.model == "student, gallery by the adapted teacher"]
    assert bool(shared) == (mode in ("s", "sc"))
    assert [row.path for row in found.artifacts] == ["student.onnx"]
    assert not (copy / "student.tflite").exists(), "an artifact of another student is left beside this one"


def test_trained_weights_are_exported_and_measured_as_they_are(copy, people):
    before = records(copy)
    given = {"distill.samples": 0, "evaluate.px": [16], "evaluate.most": 30, "benchmark.batches": [1]}
    done = again(
        people, copy, "--student-weights", "zoo", *(f"--set={key}={json.dumps(value)}" for key, value in given.items())
    )
    assert changed(before, records(copy)) == NAMES
    for told in ("dlib_resnet: to be compared with", "tiny16, weights as given (zoo), not trained"):
        assert told in done.output
    assert "work/features.npy" in json.loads(before["teacher"])["files"]
    assert "work/features.npy" not in json.loads(records(copy)["teacher"])["files"]
    weights, zoo = load_file(copy / "student.safetensors"), load_file(zoo_file("tiny16"))
    assert all(torch.equal(weights[name], value) for name, value in zoo.items())
    found = results.load(copy / "results.json")
    assert (found.student.mode, found.student.loss, found.data.split.virtual_faces) == ("none", "none", 0)
    assert {row.model for row in found.accuracy} == {"teacher", "student", "student.onnx", "student.tflite"}
    assert not (copy / "curves.csv").exists()
    # Neither this run's teacher nor its faces are where the student comes from.
    for name in ("student.onnx.json", "student.tflite.json"):
        card = json.loads((copy / name).read_text())
        assert card["teacher"] == {"name": "see students/zoo/tiny16.md", "bootstrap": False,
                                   "licence": "see students/zoo/tiny16.md"}  # fmt: skip
        assert card["data"]["name"] == "see students/zoo/tiny16.md"
    page, card = (copy / "report.html").read_text(), (copy / "MODEL_CARD.md").read_text()
    assert "<title>tiny16 beside dlib_resnet</title>" in page
    assert "not trained in this run" in page
    for text in (page, card):
        assert "distilled from" not in text
        assert "rained on" not in text
        assert "whether they saw the test people is not known here" in text
    refused = CliRunner().invoke(zoo_main, [str(copy)])
    assert refused.exit_code == 2
    assert "was not trained there" in refused.output


def test_without_weights_there_is_something_to_train(people, tmp_path):
    done = CliRunner().invoke(main, command(people, tmp_path / "out", "--set", "distill.samples=0"))
    assert done.exit_code == 2
    assert "--student-weights" in done.output


def test_a_dry_run_says_what_would_run_and_writes_nothing(copy, people, tmp_path):
    before = files(copy)
    done = again(people, copy, *settings(distill_mode="c"), "--dry-run")
    assert files(copy) == before
    states = {
        line.split()[0]: "done" in line
        for line in done.output.splitlines()
        if line.split()[:1] and line.split()[0] in NAMES
    }
    assert states == {name: name in NAMES[:3] for name in NAMES}
    assert "GB of disk" in done.output
    assert "GB of memory" in done.output
    again(people, tmp_path / "none", *settings(), "--dry-run")
    assert not (tmp_path / "none").exists()


def test_test_people_of_ones_own(people, tmp_path):
    unseen = tmp_path / "unseen"
    shutil.copytree(people, tmp_path / "rest")
    unseen.mkdir()
    for person in ("s1", "s2", "s3"):
        (tmp_path / "rest" / person).rename(unseen / person)
    again(tmp_path / "rest", tmp_path / "out", *settings(), "--val", str(unseen), "--stages", "data")
    split = json.loads((tmp_path / "out/split.json").read_text())
    assert sorted(split["test"]["identities"]) == ["s1", "s2", "s3"]
    assert sorted(split["train"]["identities"]) == ["s4", "s5", "s6", "s7", "s8"]


def test_a_public_set_without_labels(people, tmp_path):
    """Single faces of many people have no label that helps: adapted targets are all there is to learn."""
    public = tmp_path / "public"
    for index, file in enumerate(sorted(people.rglob("*.png"))):
        if file.parent.name not in ("s1", "s2"):
            (public / f"person{index}").mkdir(parents=True)
            shutil.copy(file, public / f"person{index}")
    unseen = tmp_path / "unseen"
    for person in ("s1", "s2"):
        shutil.copytree(people / person, unseen / person)
    stages = ("--stages", "data,teacher,adapt,distill")
    out = tmp_path / "out"
    again(public, out, *settings(), "--val", str(unseen), *stages)
    assert np.load(out / "work" / "targets.npy").shape == (36 + 20, 128)
    assert (out / "curves.csv").read_text().startswith("step,lr,loss,mimic")
