import csv
import json
import shutil

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from benchmarks import accuracy
from benchmarks.teacher_rows import TABLES, Row, Table
from benchmarks.teacher_runs import Bench, norm_correlation, right_pairs
from benchmarks.teacher_tables import markdown
from compress import study
from faces.dataset import CROP_PX
from faces.errors import UserError
from faces.files import lock, sha256
from faces.sources import open_faces
from teachers.settings import finetune_settings

TINY = {"steps": 2, "batch": 8, "lr": 1e-5, "triplet_margin": 0.2}


def write_people(folder, count, each, seed):
    """Identity folders of aligned made faces."""
    rng = np.random.default_rng(seed)
    for person in range(count):
        pattern = cv2.resize(rng.uniform(40, 215, (6, 6, 3)).astype(np.float32), (CROP_PX, CROP_PX))
        (folder / f"{seed}-{person}").mkdir(parents=True)
        for shot in range(each):
            image = (pattern * rng.uniform(0.8, 1.2) + rng.normal(0, 20, pattern.shape)).clip(0, 255)
            cv2.imwrite(str(folder / f"{seed}-{person}" / f"{shot}.png"), image)
    return folder


def write_pairs(file, people, each, seed):
    rows = []
    for fold in range(2):
        for person in range(fold, people, 2):
            rows += [(f"{seed}-{person}/{a}.png", f"{seed}-{person}/{b}.png", 1, fold)
                     for a in range(each) for b in range(a)]  # fmt: skip
            other = (person + 2) % people
            rows += [(f"{seed}-{person}/{a}.png", f"{seed}-{other}/{a}.png", 0, fold) for a in range(each)]
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("key_a", "key_b", "same", "fold"), *rows])
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accuracy")
    write_people(folder / "train", 8, 3, 1)
    write_people(folder / "val", 6, 3, 2)
    return folder, write_pairs(folder / "pairs.csv", 6, 3, 2)


@pytest.fixture
def detector(monkeypatch):
    """The made faces are aligned already; no detector would find them."""
    from faces.sources import reader

    real = reader.open_faces
    for module in ("benchmarks.teacher_runs", "compress.teacher_study", "faces.parts"):
        monkeypatch.setattr(f"{module}.open_faces", lambda spec: real(spec, aligned=True))


def invoke(data, out, *more, said=None):
    folder, pairs = data
    arguments = ["teachers", "--data", folder / "train", "--val", folder / "val", pairs, "--folder", out / "work"]
    done = CliRunner().invoke(accuracy.main, [str(one) for one in (*arguments, "--out", out / "results", *more)])
    assert done.exit_code == (2 if said else 0), done.output
    assert said is None or said in done.stderr
    return done


def name_of(data, row, seed=0):
    folder, pairs = data
    return Bench((str(folder / "train"),), ((str(folder / "val"), str(pairs)),), folder, folder).name(row, seed)


@pytest.fixture
def small_table(monkeypatch):
    rows = (
        Row("none", "none", same=True),
        Row("octuplet", "octuplet", TINY, seeds=2),
        Row("hhh", "octuplet", TINY | {"terms": ("hhh",)}),
    )
    monkeypatch.setitem(TABLES, "octuplet", Table("Title", "About", rows))


def test_a_row_with_unlabelled_faces_waits_for_them_and_takes_anybody_as_nobody(data, detector, tmp_path, monkeypatch):
    row = Row("free", "octuplet", TINY | {"unlabelled": 4, "anchor": 1.0})
    monkeypatch.setitem(TABLES, "octuplet", Table("Title", "About", (row,), None))
    assert "free: left out, as it needs --unlabelled" in invoke(data, tmp_path, "--table", "octuplet").stderr
    assert "| free | 0 | not run |" in (tmp_path / "results/octuplet.md").read_text()
    more = write_people(tmp_path / "more", 3, 2, 5)
    invoke(data, tmp_path, "--table", "octuplet", "--unlabelled", more)
    entry = json.loads((tmp_path / "results/octuplet.json").read_text())["rows"][0]
    assert (entry["seeds_run"], entry["device"], entry["settings"]["unlabelled"]) == (1, ["cpu"], 4)


def test_unlabelled_faces_of_the_people_measured_on_are_refused(data, detector, tmp_path):
    folder, pairs = data
    bench = Bench((str(folder / "train"),), ((str(folder / "val"), str(pairs)),), tmp_path, tmp_path,
                  unlabelled=(str(folder / "val"),))  # fmt: skip
    with pytest.raises(UserError, match=r"val and --unlabelled are not independent .*identity"):
        _ = bench.everyone


def test_what_is_wrong_with_the_faces_is_told_before_a_row_is_run(data, detector, tmp_path, monkeypatch):
    free = TINY | {"unlabelled": 4, "anchor": 1.0}
    rows = (Row("octuplet", "octuplet", TINY), Row("free", "octuplet", free))
    monkeypatch.setitem(TABLES, "octuplet", Table("Title", "About", rows, None))
    folder, pairs = data
    shutil.copytree(folder / "train", tmp_path / "train")
    (tmp_path / "train/1-0/broken.png").write_bytes(b"no image")
    arguments = ["teachers", "--data", tmp_path / "train", "--val", folder / "val", pairs, "--table", "octuplet",
                 "--folder", tmp_path / "work", "--out", tmp_path / "results"]  # fmt: skip
    refused = CliRunner().invoke(accuracy.main, [*map(str, arguments), "--unlabelled", str(folder / "val")])
    assert (refused.exit_code, "not independent" in refused.stderr) == (2, True)
    assert not (tmp_path / "work").exists()
    done = CliRunner().invoke(accuracy.main, [*map(str, arguments), "--row", "octuplet"])
    assert done.exit_code == 0, done.output
    assert done.stderr.index("--data: 1 x unreadable image") < done.stderr.index("octuplet: octuplet, seed 0")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--device", "gpu7", "unknown device"),
        ("--val", None, "two of"),
        ("--row", "nune", "no row is named 'nune'. Rows: "),
    ],
)
def test_mistakes_are_told_before_a_row_is_run(data, detector, tmp_path, option, value, said):
    folder, pairs = data
    val = ["--val", folder / "val", pairs]
    arguments = ["teachers", "--data", folder / "train", *val, *([option, value] if value else val), "--out", tmp_path]
    done = CliRunner().invoke(accuracy.main, [str(one) for one in (*arguments, "--folder", tmp_path / "work")])
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / "work").exists()


def test_a_table_is_run_row_by_row_and_read_from_then_on(data, detector, small_table, tmp_path, monkeypatch):
    invoke(data, tmp_path, "--table", "octuplet", "--row", "none")
    text = (tmp_path / "results/octuplet.md").read_text()
    assert "| octuplet | 0 | not run |" in text
    assert "| none | 1 |" in text
    assert "same@7" in text
    shown = invoke(data, tmp_path, "--table", "octuplet").output
    assert " mean, points from baseline " in shown, "piped, the table was cut"
    table = json.loads((tmp_path / "results/octuplet.json").read_text())
    octuplet = next(row for row in table["rows"] if row["row"] == "octuplet")
    told = octuplet["parts"]["val"]
    assert (octuplet["seeds_run"], len(told["mean"]["by_seed"])) == (2, 2)
    assert told["mean"]["accuracy"] == pytest.approx(np.mean(told["mean"]["by_seed"]), abs=2e-3)
    low, high = told["mean"]["ci95"]
    assert low <= told["mean"]["accuracy"] <= high
    names = ("full", "cross@56", "cross@28", "cross@14", "cross@7")
    assert told["mean"]["accuracy"] == pytest.approx(np.mean([told[name]["accuracy"] for name in names]))
    none = next(row for row in table["rows"] if row["row"] == "none")["parts"]["val"]
    gap = told["against_baseline"]["full"]["points"]
    assert gap == pytest.approx(told["full"]["accuracy"] - none["full"]["accuracy"])
    assert (tmp_path / "results/octuplet-roc.svg").stat().st_size > 1000
    # Nothing is trained again, nor where the scores are gone: a row's JSON says which pairs were right.
    monkeypatch.setattr("benchmarks.teacher_runs.finetune_teacher", None)
    before = (tmp_path / "results/octuplet.json").read_bytes()
    (tmp_path / "work").rename(tmp_path / "elsewhere")
    invoke(data, tmp_path, "--table", "octuplet")
    assert (tmp_path / "results/octuplet.json").read_bytes() == before


def test_a_row_that_another_process_works_on_is_left_out(data, detector, small_table, tmp_path):
    held = tmp_path / "work" / name_of(data, TABLES["octuplet"].rows[1])
    held.mkdir(parents=True)
    with lock(held):
        told = invoke(data, tmp_path, "--table", "octuplet", "--seed", "0")
    assert "octuplet: octuplet, seed 0: left out, another process works on it" in told.stderr
    text = (tmp_path / "results/octuplet.md").read_text()
    assert "| octuplet | 0 | not run |" in text
    assert "| hhh | 1 |" in text


def test_the_precision_of_a_row(data, detector, tmp_path, monkeypatch):
    rows = (Row("full", "octuplet", TINY), Row("half", "octuplet", TINY, precision="bf16"))
    monkeypatch.setitem(TABLES, "octuplet", Table("Title", "About", rows, "full"))
    invoke(data, tmp_path, "--table", "octuplet")
    trained = [next((tmp_path / "work").glob(f"{row.name}-0-*/teacher.safetensors")) for row in rows]
    full, half = (load_file(file) for file in trained)
    apart = max(float((full[name] - half[name]).abs().max()) for name in full)
    assert 0 < apart < 0.01


def test_the_bits_of_a_row_are_its_accuracy(data, detector, small_table, tmp_path):
    invoke(data, tmp_path, "--table", "octuplet", "--row", "none")
    (file,) = (tmp_path / "results/rows").glob("none-0-*.json")
    measured = json.loads(file.read_text())["measured"]["val/cross@14"]
    pairs = sum(1 for _ in (data[1]).open()) - 1
    assert 100 * right_pairs(measured, pairs).mean() == pytest.approx(measured["accuracy"], abs=1e-3)
    kept = json.loads(file.read_text())
    for change in ({"data": "others"}, {"measured": {"val/full": {"right": ""}}}):
        file.write_text(json.dumps(kept | change))
        invoke(data, tmp_path, "--table", "octuplet", "--row", "none", said="was measured on other faces or pairs")


def test_whether_the_gate_of_qgface_sees(data, detector):
    class Teacher:
        """The norm of its features is the resolution, or falls with it."""

        input_px = 112

        def __init__(self, power):
            self.power = power

        def embed_faces(self, faces, px=None):
            return np.full((len(faces), 1), float(px or self.input_px)) ** self.power

    faces = open_faces(str(data[0] / "val"), aligned=True)
    values = [norm_correlation(Teacher(power), faces) for power in (1, -1)]
    assert values == pytest.approx([1, -1])
    entries = [
        {"row": row, "seeds_run": 1, "norm_resolution_spearman": value}
        for row, value in zip("abc", [*values, 0.3], strict=True)
    ]
    text = markdown({"title": "T", "about": "A", "baseline": None, "rows": entries}, ["val"])
    assert "| a | +1.00 | sees |" in text
    assert "| b | -1.00 | is the wrong way round |" in text
    assert "| c | +0.30 | is blind |" in text


def test_every_table_is_well_formed():
    assert len(TABLES["terms"].rows) == 13
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        assert table.baseline in names
        for row in table.rows:
            finetune_settings(row.method, **row.changes)


def test_a_student_from_each_teacher(data, detector, small_table, tmp_path):
    invoke(data, tmp_path, "--table", "octuplet", "--row", "octuplet", "--seed", "0")
    (tuned,) = (tmp_path / "work").glob("octuplet-0-*/teacher.safetensors")
    folder, pairs = data
    arguments = ["teachers", "--data", folder / "train", "--val", folder / "val", pairs, "--seeds", "2",
                 "--tuned", f"octuplet={tuned}", "--folder", tmp_path / "study", "--out", tmp_path / "out",
                 "--set", "distill.samples=64", "--set", "distill.batch=16", "--set", "adapt.steps=3"]  # fmt: skip
    done = CliRunner().invoke(study.main, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out/students-by-teacher.json").read_text())
    assert [row["teacher"] for row in found["rows"]] == ["none", "octuplet"]
    for row in found["rows"]:
        assert list(row["protocols"]) == ["same@16", "cross@16"]
        one = row["protocols"]["same@16"]
        assert one["accuracy"] == pytest.approx(np.mean(one["by_seed"]))
    digest = sha256(tmp_path / "out/students-by-teacher.json")
    done = CliRunner().invoke(study.main, [str(one) for one in arguments])
    assert (done.exit_code, sha256(tmp_path / "out/students-by-teacher.json")) == (0, digest)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--teacher", "swin_b"), "swin_b has no weights here"),
        (("--teacher", "dlib"), "unknown teacher 'dlib'"),
        (("--student", "tiny17"), "unknown student 'tiny17'"),
        (("--set", "distill.mode=c"), "distill.mode=c: this study's students learn the adapted feature"),
        (("--tuned", f"broken={__file__}"), "neither a safetensors file nor"),
    ],
)
def test_models_that_cannot_be_had_are_told_before_any_face_is_read(data, tmp_path, monkeypatch, more, said):
    monkeypatch.setattr("compress.teacher_study.open_faces", None)
    folder, pairs = data
    arguments = ["teachers", "--data", folder / "train", "--val", folder / "val", pairs, "--folder", tmp_path / "study"]
    done = CliRunner().invoke(study.main, [str(one) for one in (*arguments, "--out", tmp_path / "out", *more)])
    assert done.exit_code == 2, (done.output, done.exception)
    assert said in done.output


def test_wrong_input_is_one_line(data, tmp_path):
    folder, pairs = data
    for more in (["--val", folder / "val", folder / "none.csv"], ["--data", folder / "nowhere"]):
        base = ["teachers", "--data", folder / "train", "--val", folder / "val", pairs]
        arguments = [*base[:3], *base[3:], *more, "--out", tmp_path / "o", "--table", "octuplet", "--row", "none"]
        done = CliRunner().invoke(accuracy.main, [str(one) for one in arguments])
        assert done.exit_code == 2
        assert done.stderr.splitlines()[-1].startswith("error: ")
