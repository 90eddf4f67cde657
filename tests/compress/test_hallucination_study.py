"""Enlarged faces in front of the teacher: the table, its rows and what is kept."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from orl_people import write_people

from compress import hallucination_rows, study
from faces.align import crop
from faces.degrade import reduce
from faces.sources import open_faces
from faces.verification import correct_by_fold, read_pairs, similarity
from students.registry import create_student
from teachers.registry import create_single


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def quick_clock(monkeypatch):
    for name, value in (("_TIMED_FACES", 4), ("_WINDOWS", 2), ("_MOST_SECONDS", 0.1)):
        monkeypatch.setattr(hallucination_rows, name, value)


def hallucination(data, out, *more):
    arguments = ["hallucination", "--data", str(data / "learn"), "--val", str(data / "val"), str(data / "pairs.csv"),
                 "--folder", str(out / "kept"), "--out", str(out), "--steps", "3", "--batch", "4", *more]  # fmt: skip
    return CliRunner().invoke(study.main, arguments)


def test_the_table_holds_what_each_way_gives_and_costs(data, tmp_path, monkeypatch):
    done = hallucination(data, tmp_path)
    assert done.exit_code == 0, (done.output, done.exception)
    told = json.loads((tmp_path / "hallucination.json").read_text())["sizes"][0]
    rows = {row["row"]: row for row in told["rows"]}
    assert list(rows) == ["teacher, full size", "bilinear", "bicubic", "ESPCN", "student tiny16"]
    assert (told["px"], told["scale"]) == (16, 8)

    teacher, faces = create_single("dlib_resnet"), open_faces(str(data / "val"))
    pairs = read_pairs(data / "pairs.csv", faces.keys)
    crops = crop(faces.images, faces.landmarks, teacher.template, teacher.input_px)
    for row, px in (("teacher, full size", None), ("bicubic", 16)):
        seen = teacher.embed(reduce(crops, px, teacher.input_px))
        right = correct_by_fold(similarity(seen[pairs.a], seen[pairs.b], teacher.metric), pairs)
        assert rows[row]["parts"]["val"]["accuracy"]["points"] == pytest.approx(100 * right.mean())
    gap = rows["ESPCN"]["parts"]["val"]["accuracy"]["against_baseline"]["points"]
    points = [rows[row]["parts"]["val"]["accuracy"]["points"] for row in ("ESPCN", "bilinear")]
    assert gap == pytest.approx(points[0] - points[1])
    assert "against_baseline" not in rows["bilinear"]["parts"]["val"]["accuracy"]
    # Bilinear blurs more; what reduced the faces was bicubic.
    noise = {row: rows[row]["parts"]["val"]["psnr_db"] for row in ("bilinear", "bicubic", "ESPCN")}
    assert noise["bilinear"] < noise["bicubic"]
    assert rows["ESPCN"]["macs"] - rows["bilinear"]["macs"] == 256 * (4800 + 18432 + 55296)
    assert rows["bilinear"]["macs"] > 100 * rows["student tiny16"]["macs"]
    assert rows["student tiny16"]["faces_per_cpu_second"] > 5 * rows["ESPCN"]["faces_per_cpu_second"]
    text = (tmp_path / "hallucination.md").read_text()
    assert "same@16" in text
    assert " multiply-accumulates, million  faces per CPU second  student is faster by " in done.output, "piped, cut"
    assert "| student tiny16 |" in text

    def refuse(*_, **__):
        raise AssertionError("a row that is there was measured again")

    monkeypatch.setattr(hallucination_rows, "similarity", refuse)
    monkeypatch.setattr(hallucination_rows, "run_windows", refuse)
    assert hallucination(data, tmp_path).exit_code == 0
    assert json.loads((tmp_path / "hallucination.json").read_text())["sizes"][0] == told


def test_another_size_has_no_row_of_a_student_that_was_not_given(data, tmp_path):
    from safetensors.torch import save_file

    save_file(create_student("tiny32").state_dict(), tmp_path / "mine.safetensors")
    done = hallucination(data, tmp_path, "--px", "16", "--px", "32", "--student", f"tiny32={tmp_path}/mine.safetensors")
    assert done.exit_code == 0, (done.output, done.exception)
    small, large = json.loads((tmp_path / "hallucination.json").read_text())["sizes"]
    assert [row["row"] for row in small["rows"]][-1] == "ESPCN"
    assert [row["row"] for row in large["rows"]][-1] == "student tiny32"
    assert large["scale"] == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--student", "tiny32"), "no --px 32 was given"),
        (("--student", "tiny16", "--px", "32"), "no --px 16 was given"),
        (("--px", "16", "--px", "96"), "96 px leave nothing to enlarge"),
        (("--teacher", "a+b"), "is an ensemble"),
        (("--teacher", "dlib"), "unknown teacher 'dlib'"),
        (("--teacher", "swin_b"), "swin_b has no weights here"),
    ],
)
def test_mistakes_are_told_in_one_line(data, tmp_path, more, said):
    done = hallucination(data, tmp_path, *more)
    assert done.exit_code == 2, (done.output, done.exception)
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_bilinear_is_a_mean_of_the_four_nearest():
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    found = hallucination_rows.bilinear(images, 8)[0].astype(float)
    low = images[0].astype(float)
    # Pixel (3, 3) of the large image lies a quarter of a pixel before (1.5, 1.5) of the small one's corners.
    wanted = 0.0625 * low[2, 2] + 0.1875 * (low[1, 2] + low[2, 1]) + 0.5625 * low[1, 1]
    assert np.abs(found[3, 3] - wanted).max() <= 0.5
