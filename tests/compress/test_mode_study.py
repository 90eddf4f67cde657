"""Tables of students on fixed pairs: rows resume one by one, and one that was not trained says so."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from compress import mode_study, part_scores, study
from compress.config import load_config
from compress.mode_rows import TABLES
from faces.dataset import Faces
from faces.sources import open_faces, orl
from faces.verification import read_pairs

SETTINGS = ("distill.samples=640", "distill.batch=64", "adapt.steps=10")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two folders of people, `learn` and `val`, and the pairs of `val`."""
    root = tmp_path_factory.mktemp("data")
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if int(person[1:]) <= 10 and int(shot) <= 4:
            folder = root / ("learn" if int(person[1:]) <= 5 else "val") / person
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{shot}.pgm").write_bytes(record.data)
    faces = open_faces(str(root / "val"))
    with (root / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key_a", "key_b", "same", "fold"])
        pairs = [(i, j) for i in range(len(faces)) for j in range(i)]
        for number, (i, j) in enumerate(pairs):
            same = faces.identities[i] == faces.identities[j]
            rows.writerow([faces.keys[i], faces.keys[j], int(same), number % 5])
    return root


def modes(data, out, *more):
    arguments = ["modes", "--data", str(data / "learn"), "--val", str(data / "val"), str(data / "pairs.csv"),
                 "--folder", str(out / "kept"), "--out", str(out), *more]  # fmt: skip
    arguments += [part for setting in SETTINGS for part in ("--set", setting)]
    return CliRunner().invoke(study.main, arguments)


def test_rows_are_trained_one_by_one_and_kept(data, tmp_path, monkeypatch):
    table = ("--table", "modes", "--seed", "0")
    done = modes(data, tmp_path, *table, "--row", "c", "--row", "sc, relational")
    assert done.exit_code == 0, (done.output, done.exception)
    first = json.loads((tmp_path / "tiny16-modes.json").read_text())
    found = {row["row"]: row for row in first["rows"]}
    assert set(found["c"]["parts"]["val"]) == {"same@16"}
    both = found["sc, relational"]["parts"]["val"]
    assert set(both) == {"same@16", "cross@16"}
    for metric in ("accuracy", "tpr"):
        assert "against_baseline" not in both["same@16"][metric]
        alone = found["c"]["parts"]["val"]["same@16"][metric]
        gap = alone["points"] - both["same@16"][metric]["points"]
        assert alone["against_baseline"]["points"] == pytest.approx(gap)
    assert found["s, relational"]["seeds"] == []
    text = (tmp_path / "tiny16-modes.md").read_text()
    assert "| s, relational | 0 | not run |" in text
    assert " sc, regression, two teachers " in done.output, "piped, the table was cut"
    assert "640 degraded faces" in text
    assert "| row | seeds | same@16 | from baseline | TPR at FPR 10% | cross@16 |" in text

    # From the scores that were kept: a genuine pair is accepted that at most a tenth of the impostors equals or beats.
    (file,) = (tmp_path / "kept/rows").glob("c-0-*.npz")
    pairs = read_pairs(data / "pairs.csv", open_faces(str(data / "val")).keys)
    scores = np.load(file)["val/same@16"]
    impostors = scores[~pairs.same]
    accepted = int(0.1 * len(impostors))
    assert accepted >= 10
    rate = 100 * np.mean([sum(impostors >= score) <= accepted for score in scores[pairs.same]])
    assert found["c"]["parts"]["val"]["same@16"]["tpr"]["points"] == pytest.approx(rate)

    trained = []
    plain = mode_study.train_student
    monkeypatch.setattr(mode_study, "train_student", lambda *given: trained.append(given) or plain(*given))
    assert modes(data, tmp_path, *table, "--row", "c", "--row", "dc, regression").exit_code == 0
    assert len(trained) == 1, "a row that is there was trained again"
    assert modes(data, tmp_path, "--table", "modes", "--read-only").exit_code == 0
    assert len(trained) == 1
    again = {row["row"]: row for row in json.loads((tmp_path / "tiny16-modes.json").read_text())["rows"]}
    assert again["c"] == found["c"]
    assert again["dc, regression"]["seeds"] == [0]


def test_a_row_of_sizes_that_the_student_does_not_take_is_not_run(data, tmp_path):
    mixed = ("--student", "small16", "--table", "recipe", "--seed", "0", "--row", "mixed 16 and 32 px")
    done = modes(data, tmp_path, *mixed)
    assert done.exit_code == 0, (done.output, done.exception)
    found = {row["row"]: row for row in json.loads((tmp_path / "small16-recipe.json").read_text())["rows"]}
    assert found["mixed 16 and 32 px"]["seeds"] == []
    assert not list((tmp_path / "kept").rglob("*.npz"))
    done = modes(data, tmp_path, *mixed, "--set", "distill.sizes=16,32")
    assert done.exit_code == 2
    assert "faces of 16 px alone: leave out distill.sizes" in done.output


def test_the_rows_differ_in_what_they_say(data, tmp_path):
    rows = ("own feature alone", "batch 128", "weights averaged", "mixed 16 and 32 px")
    done = modes(data, tmp_path, "--table", "recipe", "--seed", "3", *(p for row in rows for p in ("--row", row)))
    assert done.exit_code == 0, (done.output, done.exception)
    kept = sorted((tmp_path / "kept/rows").glob("*.npz"))
    assert len(kept) == 4
    assert len({np.load(file)["val/same@16"].tobytes() for file in kept}) >= 2


def test_mirrored_and_virtual_targets_are_embedded_once(data, tmp_path, monkeypatch):
    rows = tuple(replace(row, virtual=7 if row.virtual else 0) for row in TABLES["recipe"].rows)
    monkeypatch.setitem(mode_study.TABLES, "recipe", replace(TABLES["recipe"], rows=rows))
    embedded, learnt = [], []
    plain, trained = part_scores.embed, mode_study.train_student

    def embed(teacher, faces, mirror, progress):
        embedded.append((len(faces), mirror))
        return plain(teacher, faces, mirror, progress)

    monkeypatch.setattr(part_scores, "embed", embed)
    monkeypatch.setattr(mode_study, "train_student", lambda *given: learnt.append(given[1].targets) or trained(*given))
    rows = ("own feature alone", "mirrored targets", "virtual faces")
    arguments = ("--table", "recipe", *(part for row in rows for part in ("--row", row)))
    done = modes(data, tmp_path, *arguments, "--seed", "0")
    assert done.exit_code == 0, (done.output, done.exception)
    people, unseen = len(open_faces(str(data / "learn"))), len(open_faces(str(data / "val")))
    # The gallery of `cross` is the face as it is.
    assert sorted(embedded) == sorted([(people, False), (unseen, False), (people, True), (7, False)])
    (file,) = (tmp_path / "kept").glob("virtual-7-*.npz")
    assert (Faces.load(file).identities == -1).all()
    own, mirrored, virtual = learnt
    assert own.shape == mirrored.shape == (people, 128)
    assert np.abs(own - mirrored).max() > 0.01
    cosines = np.einsum("nd,nd->n", own, mirrored) / np.linalg.norm(own, axis=1) / np.linalg.norm(mirrored, axis=1)
    assert cosines.min() > 0.8
    assert virtual.shape == (people + 7, 128)
    before, written = len(embedded), file.stat().st_mtime_ns
    assert modes(data, tmp_path, *arguments, "--seed", "1").exit_code == 0
    assert len(embedded) == before
    assert file.stat().st_mtime_ns == written
    np.testing.assert_array_equal(learnt[-1], virtual)
    found = {row["row"]: row for row in json.loads((tmp_path / "tiny16-recipe.json").read_text())["rows"]}
    assert [found[row]["seeds"] for row in rows] == [[0, 1]] * 3


def test_a_classification_loss_is_compared_with_softmax_in_its_own_mode(data, tmp_path):
    rows = ("softmax, c", "sphereface+, c", "softmax, sc", "center, sc", "arcface, sc, two teachers")
    arguments = [part for row in rows for part in ("--row", row)]
    done = modes(data, tmp_path, "--table", "losses", "--seed", "0", *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    found = {row["row"]: row for row in json.loads((tmp_path / "tiny16-losses.json").read_text())["rows"]}
    assert len(found) == 6 * 5
    for name, other in (("sphereface+, c", "softmax, c"), ("center, sc", "softmax, sc")):
        mine, base = (found[one]["parts"]["val"]["same@16"]["accuracy"] for one in (name, other))
        assert mine["against_baseline"]["points"] == pytest.approx(mine["points"] - base["points"])
        assert "against_baseline" not in base
    assert found["arcface, sc, two teachers"]["seeds"] == [], "there is no second teacher"
    assert found["cosface, dc"]["seeds"] == []


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_row_is_named_once_and_has_its_baseline(table):
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names)
    for row in table.rows:
        baseline = table.baseline_of(row)
        assert baseline is None or table.baseline_of(baseline) is None
        replace(load_config("standard", None, {}, []).distill, **row.changes)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--row", "d"), "no row is named 'd'"),
        (("--data", "nowhere"), "nowhere"),
        (("--set", "teacher.weights=mine.safetensors"), "--set teacher: "),
        (("--set", "data.virtual=500"), "--set data: "),
        (("--set", "seed=7"), "--set seed: "),
        (("--set", "evaluate.most=70"), "--set evaluate: "),
    ],
)
def test_mistakes_are_told_in_one_line(data, tmp_path, more, said):
    done = modes(data, tmp_path, *more)
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--second", "swin_c"), "unknown teacher 'swin_c'; did you mean swin_b? Known: dlib_resnet, "),
        (("--second", "onnx:nowhere.onnx"), "nowhere.onnx"),
        (("--second", "swin_b"), "swin_b has no weights here"),
        (("--second", "dlib_resnet"), "names a member twice"),
        (("--teacher", "dlib"), "unknown teacher 'dlib'"),
        (("--student", "tiny17"), "unknown student 'tiny17'; did you mean tiny16? Known: tiny16, tiny32, "),
        (("--student", "tiny17", "--read-only"), "unknown student 'tiny17'"),
        (("--set", "distill.weights=nowhere"), "nowhere"),
    ],
)
def test_models_that_cannot_be_had_are_told_before_any_face_is_read(data, tmp_path, monkeypatch, more, said):
    monkeypatch.setattr(mode_study, "open_faces", None)
    done = modes(data, tmp_path, *more)
    assert done.exit_code == 2, (done.output, done.exception)
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_teacher_of_no_row_and_of_kept_rows_need_not_be_there(data, tmp_path):
    done = modes(data, tmp_path, "--second", "onnx:nowhere.onnx", "--table", "modes", "--row", "c", "--seed", "0")
    assert done.exit_code == 0, (done.output, done.exception)
    done = modes(data, tmp_path, "--second", "onnx:nowhere.onnx", "--table", "modes", "--read-only")
    assert done.exit_code == 0, (done.output, done.exception)
