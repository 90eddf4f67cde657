import json
import shutil

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from compress import study
from compress.config import load_config
from faces.dataset import split_identities
from faces.sources import open_faces, orl

ROWS = ("teacher", "sc relational", "c")
SETTINGS = (
    "distill.samples=640", "distill.batch=64", "adapt.steps=10", "data.virtual=5", "data.aligned=true",
    "evaluate.most=30",
)  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "people"
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if int(person[1:]) <= 6 and int(shot) <= 5:
            (folder / person).mkdir(parents=True, exist_ok=True)
            (folder / person / f"{shot}.pgm").write_bytes(record.data)
    return folder


def splits(people, out, *more, rows=ROWS):
    arguments = ["splits", "--data", str(people), "--splits", "2", "--out", str(out), *more]
    arguments += [part for row in rows for part in ("--row", row)]
    arguments += [part for setting in SETTINGS for part in ("--set", setting)]
    return CliRunner().invoke(study.main, arguments)


@pytest.fixture(scope="module")
def ended(people, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    done = splits(people, out)
    assert done.exit_code == 0, (done.output, done.exception)
    return out


def test_a_row_is_the_mean_and_spread_of_its_splits(ended):
    found = json.loads((ended / "splits.json").read_text())
    assert [entry["row"] for entry in found["rows"]] == list(ROWS)
    for entry in found["rows"]:
        stored = [
            json.loads(file.read_text())
            for file in sorted((ended / "rows").glob(f"{entry['row'].replace(' ', '-')}-*"))
        ]
        assert entry["accuracy"] == [one["accuracy"] for one in stored]
        assert len(entry["accuracy"]) == 2
        assert entry["mean"] == pytest.approx(sum(entry["accuracy"]) / 2)
        assert entry["sd"] == pytest.approx(abs(entry["accuracy"][0] - entry["accuracy"][1]) / 2**0.5)
    protocols = {entry["row"]: entry["protocol"] for entry in found["rows"]}
    assert protocols == {"teacher": "full", "sc relational": "same@16", "c": "same@16"}
    table = (ended / "splits.md").read_text()
    for entry in found["rows"]:
        assert f"| {entry['row']} | {entry['protocol']} | {entry['mean']:.1f} | {entry['sd']:.1f} |" in table


def test_the_teacher_is_not_ranked_among_the_students(ended):
    students = {entry["row"]: entry for entry in json.loads((ended / "splits.json").read_text())["rows"]}
    teacher = students.pop("teacher")
    assert "behind_best" not in teacher
    best = max(students.values(), key=lambda entry: entry["mean"])
    assert [name for name, entry in students.items() if "behind_best" in entry] == [
        n for n in students if n != best["row"]
    ]


@pytest.mark.parametrize("command", study.main.commands.values(), ids=list(study.main.commands))
def test_every_option_says_what_it_is_for(command):
    for option in command.params:
        words = (option.help or "").removesuffix("Repeats.").split()
        assert len(words) >= 3, f"{option.opts[0]} teaches nothing: {option.help!r}"


def test_the_gap_to_the_best_is_paired():
    best, other = [90.0, 85.0, 88.0, 91.0], [88.0, 84.0, 84.0, 90.0]
    found = study._paired(best, other)
    wanted = stats.ttest_rel(best, other).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(np.mean(np.subtract(best, other)))
    assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high))


def test_a_stopped_study_continues_with_what_is_missing(ended, people, monkeypatch):
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (ended / "rows").iterdir()}
    lost = next(file for file in before if file.name.startswith("c-1"))
    lost.unlink()
    trained = []
    real = study.train_student

    def spy(student, examples, *rest):
        trained.append(examples)
        return real(student, examples, *rest)

    monkeypatch.setattr(study, "train_student", spy)
    done = splits(people, ended)
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(trained) == 1
    assert trained[0].targets is None
    # The row that was lost comes out the same: nothing hangs on what ran before it.
    assert lost.read_bytes() == before[lost][0]
    after = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (ended / "rows").iterdir()}
    assert {file: after[file] for file in before if file != lost} == {
        file: before[file] for file in before if file != lost
    }


@pytest.mark.parametrize("allowed", [False, True])
def test_no_image_is_learnt_from_that_is_tested_on(people, tmp_path, allowed):
    faces = open_faces(str(shutil.copytree(people, tmp_path / "people")), aligned=True)
    settings = ("data.aligned=true", "data.virtual=0", f"data.allow_leaks={allowed}".lower())
    config = load_config("quick", None, {"teacher.name": "dlib_resnet"}, settings)
    test = faces.subset(split_identities(faces, config.data.test_share, 0)[1])
    # One test image again, a little lighter, as an image of a person to learn from.
    person = next(name for name in faces.names if name not in test.names)
    image = cv2.imread(str(tmp_path / test.keys[0]))
    cv2.imwrite(str(tmp_path / "people" / person / "copy.pgm"), cv2.add(image[..., 0], 3))
    faces = open_faces(str(tmp_path / "people"), aligned=True)
    split = study._Split(faces, config, 0, tmp_path)
    assert (f"people/{person}/copy.pgm" in split.train.keys) is allowed


def test_other_settings_are_other_rows(ended, people, monkeypatch, tmp_path):
    copy = shutil.copytree(ended, tmp_path / "copy")
    before = set((copy / "rows").iterdir())
    monkeypatch.setattr("test_study.SETTINGS", ("distill.samples=320", *SETTINGS[1:]))
    done = splits(people, copy, rows=["c"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert sorted(file.name[:4] for file in set((copy / "rows").iterdir()) - before) == ["c-0-", "c-1-"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--teacher", "swin_x"], "unknown teacher"),
        (["--student", "tiny"], "unknown student"),
        (["--set", "distill.sample=5"], "did you mean 'distill.samples'"),
        (["--set", "export.formats=onnx"], "--set export="),
        # Read in some of its rows, though not in all.
        (["--set", "distill.class_weight=.1", "--set", "distill.temperature=6", "--data", "/nowhere"], "no face data"),
        (["--set", "distill.class_weight=.1", "--row", "s relational"], "--set distill.class_weight changes nothing"),
        (["--set", "evaluate.px=24"], "--set evaluate.px="),
        (["--data", "/nowhere"], "no face data"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, words):
    done = CliRunner().invoke(study.main, ["splits", "--out", str(tmp_path / "out"), *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--splits", "1"], ["--first", "1" + 20 * "0"]])
def test_one_split_is_no_study_and_a_seed_has_32_bits(arguments):
    done = CliRunner().invoke(study.main, ["splits", *arguments])
    assert (done.exit_code, f"Invalid value for '{arguments[0]}'" in done.stderr) == (2, True)


def test_a_row_of_other_settings_data_or_sources_is_not_reused(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    (root / "students").mkdir(parents=True)
    source = root / "students" / "train.py"
    source.write_text("one")
    monkeypatch.setattr(study, "ROOT", root)
    person = tmp_path / "faces" / "p"
    person.mkdir(parents=True)
    options = {"data.public": [str(tmp_path / "faces")]}
    config = load_config("quick", None, options, [])
    first = study._key(config, "c")
    assert study._key(config, "c") == first
    assert study._key(load_config("quick", None, options, ["adapt.keep=1"]), "c") != first
    source.write_text("two")
    second = study._key(config, "c")
    (person / "new.png").write_bytes(b"a face")
    assert len({first, second, study._key(config, "c"), study._key(config, "sc regression")}) == 4


@pytest.mark.parametrize(
    ("row", "setting", "said"),
    [("s relational", "distill.mode=c", "distill.mode=c: in row 's relational' of this study it is s"),
     ("c", "seed=5", "seed=5"), ("teacher", "data.val=orl", "data.val=orl"),
     ("teacher", "teacher.mirror=true", "teacher.mirror=True"),
     ("sc relational", "teacher.finetune.method=octuplet", "teacher.finetune.method=octuplet")],
)  # fmt: skip
def test_what_the_study_decides_is_not_set(people, tmp_path, row, setting, said):
    done = splits(people, tmp_path, "--set", setting, rows=(row,))
    assert done.exit_code == 2
    assert said in done.output
    assert not list(tmp_path.iterdir())


def test_other_weights_under_the_same_name_are_another_row(tmp_path):
    keys = set()
    for teacher, student in (("one", "one"), ("two", "one"), ("two", "two")):
        (tmp_path / "teacher").write_text(teacher)
        (tmp_path / "student").write_text(student)
        files = {"teacher.weights": str(tmp_path / "teacher"), "distill.weights": str(tmp_path / "student")}
        keys.add(study._key(load_config("quick", None, {"teacher.name": "dlib_resnet", **files}, []), "c"))
    assert len(keys) == 3
