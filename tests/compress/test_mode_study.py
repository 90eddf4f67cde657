"""Tables of students on fixed pairs: rows resume one by one, and one that was not trained says so."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from compress import mode_study, study
from faces.sources import open_faces, orl

SETTINGS = ("distill.samples=640", "distill.batch=64", "adapt.steps=10")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two folders of people, `learn` and `val`, and the pairs of `val`."""
    root = tmp_path_factory.mktemp("data")
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if int(person[1:]) <= 8 and int(shot) <= 4:
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
    assert "against_baseline" not in both["same@16"]
    gap = found["c"]["parts"]["val"]["same@16"]["against_baseline"]["points"]
    assert gap == pytest.approx(found["c"]["parts"]["val"]["same@16"]["points"] - both["same@16"]["points"])
    assert found["s, relational"]["seeds"] == []
    text = (tmp_path / "tiny16-modes.md").read_text()
    assert "| s, relational | 0 | not run |" in text
    assert "640 degraded faces" in text

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


def test_the_rows_differ_in_what_they_say(data, tmp_path):
    rows = ("own feature alone", "batch 128", "weights averaged", "mixed 16 and 32 px")
    done = modes(data, tmp_path, "--table", "recipe", "--seed", "3", *(p for row in rows for p in ("--row", row)))
    assert done.exit_code == 0, (done.output, done.exception)
    kept = sorted((tmp_path / "kept/rows").glob("*.npz"))
    assert len(kept) == 4
    assert len({np.load(file)["val/same@16"].tobytes() for file in kept}) >= 2


@pytest.mark.parametrize(
    ("more", "said"), [(("--row", "d"), "no row is named 'd'"), (("--data", "nowhere"), "nowhere")]
)
def test_mistakes_are_told_in_one_line(data, tmp_path, more, said):
    done = modes(data, tmp_path, *more)
    assert done.exit_code == 2
    assert said in done.output
