"""The cases of the adaptation: who is public, private and held out, and the table."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from orl_people import write_people

from compress import adaptation_rows, adaptation_study, study
from compress.adaptation_rows import CASES, softmax_recognises, split_faces
from compress.config import Adapt, load_config
from faces.dataset import Faces
from faces.errors import UserError
from faces.parts import open_parts
from faces.sources import open_faces

SETTINGS = ("distill.samples=640", "distill.batch=64", "adapt.steps=60", "adapt.lr=0.01")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("data"), learn=6, val=3, shots=6)


def adaptation(data, out, *more):
    arguments = ["adaptation", "--data", str(data / "learn"), "--val", str(data / "val"), str(data / "pairs.csv"),
                 "--folder", str(out / "kept"), "--out", str(out), "--seed", "0", *more]  # fmt: skip
    arguments += [part for setting in SETTINGS for part in ("--set", setting)]
    return CliRunner().invoke(study.main, arguments)


def some_faces(counts, unlabelled=0):
    identities = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.full(unlabelled, -1)])
    count = len(identities)
    return Faces(
        np.zeros((count, 128, 128, 3), np.uint8), np.zeros((count, 5, 2), np.float32), identities,
        tuple(f"p{i}" for i in range(len(counts))), tuple(map(str, range(count))),
    )  # fmt: skip


def test_the_split_keeps_private_people_and_held_images_apart():
    faces = some_faces([10, 10, 10, 10, 5, 5, 1, 1, 2, 2], unlabelled=7)
    split = split_faces(faces)
    every = np.concatenate([split.learn, split.held, split.private])
    assert sorted(every) == list(range(len(faces)))
    private, learn = set(faces.identities[split.private]), set(faces.identities[split.learn])
    assert len(private) == 5
    assert not private & learn
    assert -1 in learn
    assert set(faces.identities[split.held]) <= learn
    for person in learn - {-1}:
        images = (faces.identities == person).sum()
        assert (faces.identities[split.held] == person).sum() == round(0.2 * images)


@pytest.mark.parametrize(("counts", "said"), [([5, 5, 5], "at least 4"), ([2] * 8, "too few images a person")])
def test_sets_that_cannot_be_split_are_told(counts, said):
    with pytest.raises(UserError, match=said):
        split_faces(some_faces(counts))


def test_the_closed_set_is_recognised_as_far_as_features_tell_people_apart():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 20)
    centres = rng.standard_normal((8, 16))
    near, far = (centres[labels] * scale + rng.standard_normal((160, 16)) + 5 for scale in (0.0, 4.0))
    learn = np.arange(160) % 5 > 0
    how = Adapt(steps=200, batch=64, lr=1e-2)
    found = [
        softmax_recognises(
            x[learn].astype(np.float32), labels[learn], x[~learn].astype(np.float32), labels[~learn], how, 0
        ).mean()
        for x in (near, far)
    ]
    assert found[0] < 0.4
    assert found[1] > 0.95


def test_rows_are_trained_one_by_one_and_kept(data, tmp_path, monkeypatch):
    rows = ("proposed", "mixed", "no cross-dataset step", "labels alone")
    done = adaptation(data, tmp_path, *(part for row in rows for part in ("--row", row)))
    assert done.exit_code == 0, (done.output, done.exception)
    told = json.loads((tmp_path / "adaptation.json").read_text())
    found = {row["row"]: row for row in told["rows"]}
    assert list(found) == [case.name for case in CASES]
    assert {name for name, row in found.items() if row["seeds"]} == set(rows)
    assert set(found["mixed"]["parts"]["val"]) == {"same@16", "cross@16"}
    assert set(found["no cross-dataset step"]["parts"]["val"]) == {"same@16", "cross@16"}
    assert set(found["labels alone"]["parts"]["val"]) == {"same@16"}
    assert set(found["labels alone"]["closed_set"]) == {"16 px"}
    assert set(found["mixed"]["closed_set"]) == {"full", "16 px"}
    assert found["labels alone"]["teacher"] is None
    for name in ("mixed", "labels alone"):
        gap = found[name]["parts"]["val"]["same@16"]["accuracy"]["against_baseline"]["points"]
        points = [found[row]["parts"]["val"]["same@16"]["accuracy"]["points"] for row in (name, "proposed")]
        assert gap == pytest.approx(points[0] - points[1])
    assert "against_baseline" not in found["proposed"]["closed_set"]["full"]
    # A network that tells people apart, on people that its softmax was fitted to.
    assert found["no cross-dataset step"]["closed_set"]["full"]["points"] > 60
    text = (tmp_path / "adaptation.md").read_text()
    assert "closed-set, full" in text
    assert " compression without distillation  dlib_resnet " in done.output, "piped, the table was cut"
    assert "| compression without distillation | dlib_resnet | 0 | not run |" in text
    assert "closed-set, full" in (tmp_path / "adaptation.svg").read_text()

    trained = []
    plain = adaptation_rows.train_student
    monkeypatch.setattr(adaptation_rows, "train_student", lambda *a, **b: trained.append(a) or plain(*a, **b))
    assert adaptation(data, tmp_path, "--row", "mixed", "--row", "proposed, equation 1 alone").exit_code == 0
    assert len(trained) == 1, "a row that is there was trained again"
    assert adaptation(data, tmp_path, "--read-only").exit_code == 0
    assert len(trained) == 1
    again = {row["row"]: row for row in json.loads((tmp_path / "adaptation.json").read_text())["rows"]}
    assert again["mixed"] == found["mixed"]
    assert again["proposed, equation 1 alone"]["seeds"] == [0]


def test_each_case_adapts_to_what_its_name_says(data, tmp_path, monkeypatch):
    told = {}

    def spy(features, labels, how, seed):
        told[name] = (len(features), len(np.unique(labels[labels >= 0])), how.balance, how.keep)
        return real(features, labels, how, seed)

    real = adaptation_rows.fit_classifiers
    monkeypatch.setattr(adaptation_rows, "fit_classifiers", spy)
    taught = {}
    monkeypatch.setattr(
        adaptation_rows,
        "train_student",
        lambda student, examples, *_, **__: taught.update({name: examples}) or student.eval(),
    )
    faces = open_faces(str(data / "learn"))
    config = load_config("standard", None, {}, SETTINGS)
    work = adaptation_rows.Study(config, faces, open_parts([(str(data / "val"), str(data / "pairs.csv"))]), tmp_path)
    for case in CASES:
        name = case.name
        work.run(case, "dlib_resnet", 0)
    learn, private = len(work.split.learn), len(work.split.private)
    assert told == {
        "compression without distillation": (learn, 3, 0.0, 0.0),
        "proposed, equation 1 alone": (learn, 3, 1.0, 0.0),
        "proposed": (learn, 3, 1.0, 10.0),
        "mixed": (learn + private, 6, 1.0, 10.0),
    }
    # Every student learns from the same public faces.
    assert {len(examples.crops) for examples in taught.values()} == {learn}
    assert taught["labels alone"].targets is None
    own = taught["no cross-dataset step"].targets
    assert np.abs(own.mean(0)).max() < 1e-4
    assert not np.allclose(taught["proposed"].targets, taught["mixed"].targets)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--teacher", "dlib_resnet", "--teacher", "onnx:nowhere.onnx"), "nowhere.onnx"),
        (("--teacher", "dlib"), "unknown teacher 'dlib'"),
        (("--student", "tiny17"), "unknown student 'tiny17'; did you mean tiny16? Known: tiny16, tiny32, "),
    ],
)
def test_models_that_cannot_be_had_are_told_before_any_face_is_read(data, tmp_path, monkeypatch, more, said):
    monkeypatch.setattr(adaptation_study, "open_parts", None)
    done = adaptation(data, tmp_path, *more)
    assert done.exit_code == 2, (done.output, done.exception)
    assert said in done.output


def test_the_figure_has_a_colour_for_each_teacher(tmp_path):
    from compress.adaptation_figure import draw

    one = {"points": 80.0, "ci95": [78.0, 82.0]}
    rows = [
        {"row": row, "teacher": teacher, "seeds": [0], "closed_set": {"full": one},
         "parts": {"val": {"same@16": {"accuracy": one}, "cross@16": {"accuracy": one}}}}
        for teacher in ("one", "two") for row in ("proposed", "mixed")
    ]  # fmt: skip
    rows.append({"row": "labels alone", "teacher": None, "seeds": [], "closed_set": {}, "parts": {"val": {}}})
    draw({"rows": rows}, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    for text in ("one", "two", "proposed", "mixed", "val, same@16", "closed-set, full"):
        assert f"<!-- {text} -->" in drawn
    assert "<!-- labels alone -->" not in drawn
    draw({"rows": rows}, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == drawn.encode()
    draw({"rows": rows[-1:]}, tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
