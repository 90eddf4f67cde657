"""Teachers fine-tuned as a user does it: alone, under torchrun, and in the pipeline."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from compress import results
from compress.pipeline import main as pipeline
from faces.sources import orl
from faces.sources.record import decode
from teachers.finetune import main, parse_settings
from teachers.registry import create_teacher
from teachers.settings import finetune_settings

ROOT = Path(__file__).parents[2]
SMALL = ["steps=4", "batch=8", "optimiser=sgd", "lr=1e-3"]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """24 ORL people with four faces each, as PNG files in an identity folder."""
    folder = tmp_path_factory.mktemp("data") / "people"
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if int(person[1:]) <= 24 and int(shot) <= 4:
            (folder / person).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / person / f"{shot}.png"), decode(record.data))
    return folder


def arguments(people, out, method, *more):
    sets = [part for one in SMALL for part in ("--set", one)]
    return ["--method", method, "--teacher", "dlib_resnet", "--data", str(people), "--out", str(out), *sets, *more]


def backbone(file):
    return {name: value for name, value in load_file(file).items() if name.startswith("backbone.")}


def test_a_command_writes_a_teacher_that_the_registry_takes(people, tmp_path):
    done = CliRunner().invoke(main, arguments(people, tmp_path, "octuplet", "--checks", "1", "--set", "terms=hhh,lll"))
    assert done.exit_code == 0, (done.output, done.exception)
    assert "step 0: full" in done.stderr
    assert "step 4: full" in done.stderr
    with (tmp_path / "finetune.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"lr", "loss", "hhh", "lll", "full", "cross@7"} <= set(rows[0])
    assert [row["step"] for row in rows if row["full"]] == ["0", "4"]
    assert list((tmp_path / "csv").rglob("metrics.csv"))
    assert list((tmp_path / "tensorboard").rglob("events.*"))
    teacher = create_teacher("dlib_resnet", tmp_path / "teacher.safetensors")
    plain = create_teacher("dlib_resnet")
    assert "fine-tuned by octuplet (4 steps)" in teacher.source
    first = (one.backbone.state_dict()["stem.weight"] for one in (teacher, plain))
    assert not torch.equal(*first)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "terms=abc"], "terms"),
        (["--set", "steps"], "key=value"),
        (["--set", "stepz=3"], "known:"),
        (["--set", "steps="], "key=value"),
        (["--set", "method=full"], "--method"),
        (["--set", "twin=["], "no regular expression"),
        (["--method", "lora", "--set", "twin=nothing", "--set", "single=nothing"], "no layer matches"),
        (["--seed", str(2**32)], "--seed"),
        (["--val", ""], "no face data"),
        (["--data", ""], "no face data"),
        (["--data", "~nosuchuser/x"], "no face data"),
        (["--pairs", ""], "pairs"),
        (["--teacher-weights", ""], "no weights file"),
        (["--set", "batch=400"], "lower the batch"),
        (["--device", "cuda:9"], "cuda:9"),
        (["--device", "cuda:²"], "unknown device"),
        (["--strategy", "fsdp"], "fsdp shards over GPUs"),
        (["--teacher-weights", "/nowhere.safetensors"], "no weights file"),
        (["--set", "batch=2"], "batch: octuplet compares two images each of two people"),
        (["--set", "low_px=0.2,7"], "low_px"),
        (["--set", "rank=4"], "rank changes nothing in octuplet"),
        (["--teacher", "swin_b"], "no trained weights for swin_b"),
        (["--pairs", "none such.csv"], "no file none such.csv (--pairs)"),
        (["--pairs", __file__, "--checks", "0"], "--checks 0 measures nothing"),
        (["--val", "orl", "--checks", "0"], "--val is measured on, and --checks 0 measures nothing"),
        (["--set", "sizes=7,7,14", "--set", "copies=2"], "two of 7, 7, 14 would be equal"),
    ],
)
def test_a_users_mistake_is_one_line(people, tmp_path, more, words):
    done = CliRunner().invoke(main, arguments(people, tmp_path / "out", "octuplet", *more))
    assert done.exit_code == 2, (done.output, done.exception)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_checks_nobody_is_held_out(tmp_path):
    few = tmp_path / "few"  # too few to hold one out and to draw pairs
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if int(person[1:]) <= 4 and int(shot) <= 3:
            (few / person).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(few / person / f"{shot}.png"), decode(record.data))
    (few / "s1/broken.png").write_bytes(b"no image")
    done = CliRunner().invoke(main, arguments(few, tmp_path / "out", "octuplet", "--checks", "0"))
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"{few}: 1 x unreadable image" in done.stderr
    assert (tmp_path / "out/teacher.safetensors").is_file()


def test_a_val_set_of_copies_is_refused(people, tmp_path):
    for file in sorted(people.rglob("*.png"))[:16]:
        copy = tmp_path / "val" / f"{file.parent.name}-again" / f"{file.stem}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(copy), cv2.imread(str(file)))
    done = CliRunner().invoke(main, arguments(people, tmp_path / "out", "octuplet", "--val", str(tmp_path / "val")))
    assert done.exit_code == 2, (done.output, done.exception)
    assert "--val is not independent of --data in 12 places" in done.stderr


def test_copies_of_the_faces_measured_on_are_not_learnt_from(people, tmp_path):
    doubled = tmp_path / "people"
    for file in sorted(people.rglob("*.png"))[:24]:
        for name in (f"{file.parent.name}/{file.stem}.png", f"{file.parent.name}-again/{file.stem}.jpg"):
            (doubled / name).parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(doubled / name), cv2.imread(str(file)))
    done = CliRunner().invoke(main, arguments(doubled, tmp_path / "out", "octuplet", "--checks", "1"))
    assert done.exit_code == 0, (done.output, done.exception)
    assert "6 training faces left out: nearly the same as a face to be measured on" in done.stderr


def test_settings_from_words():
    words = ("lr=1e-4", "steps=1e3", "partition=false", "gate=none", "sizes= 7,14", "terms=hhh", "head=arcface",
             "contrastive=none", "twin=none")  # fmt: skip
    found = finetune_settings("qgface", **parse_settings(words))
    expected = {
        "lr": 1e-4, "steps": 1000, "partition": False, "gate": None, "sizes": (7, 14), "terms": ("hhh",),
        "head": "arcface", "contrastive": "none", "twin": None,
    }  # fmt: skip
    assert found == finetune_settings("qgface", **expected)


@pytest.mark.slow
def test_torchrun_gives_the_teacher_of_one_process(people, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29533", "-m"]
    for prefix, out in (([sys.executable, "-m"], "one"), (command, "two")):
        done = subprocess.run(
            [*prefix, "teachers.finetune", *arguments(people, tmp_path / out, "octuplet", "--checks", "0")],
            capture_output=True, text=True, cwd=ROOT, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (backbone(tmp_path / out / "teacher.safetensors") for out in ("one", "two"))
    plain = create_teacher("dlib_resnet").backbone.state_dict()
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    moved = max(float((one[name] - plain[name.removeprefix("backbone.")]).abs().max()) for name in one)
    assert apart < 1e-5 < moved


@pytest.mark.slow
def test_the_pipeline_fine_tunes_merges_and_distils(people, tmp_path):
    sets = {
        "teacher.finetune.steps": 4, "teacher.finetune.batch": 8, "teacher.finetune.quality_steps": 30,
        "teacher.checks": 1, "distill.samples": 2560, "distill.batch": 128, "adapt.steps": 20,
        "evaluate.px": [16], "evaluate.most": 30, "benchmark.batches": [1], "data.virtual": 20,
        # A quality score is fitted on twenty people or more.
        "data.test_share": 0.15,
    }  # fmt: skip
    parts = [part for key, value in sets.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = ["--teacher", "dlib_resnet", "--student", "tiny16", "--data", str(people), "--out", str(tmp_path / "run"),
               "--teacher-method", "petalface", *parts]  # fmt: skip
    done = CliRunner().invoke(pipeline, command)
    assert done.exit_code == 0, (done.output, done.exception)
    found = results.load(tmp_path / "run/results.json")
    tuned = found.teacher.finetuned
    assert "fine-tuned by petalface (4 steps)" in done.stderr
    assert (found.teacher.method, tuned.steps) == ("petalface", 4)
    assert 0 < tuned.trained < found.teacher.params
    assert tuned.fixed_alpha.merge_max_abs < 1e-5
    assert set(tuned.fixed_alpha.by_px) == {"full", "16 px"}
    page = (tmp_path / "run/report.html").read_text()
    assert "How the teacher learnt to see small faces" in page
    assert "Accuracy by resolution" in page
    before = (tmp_path / "run/teacher.safetensors").read_bytes()
    again = CliRunner().invoke(pipeline, command)
    assert again.exit_code == 0
    assert again.stderr.count("done before") == 8
    assert (tmp_path / "run/teacher.safetensors").read_bytes() == before


@pytest.mark.slow
def test_the_pipeline_tunes_on_faces_of_nobody_known_too(people, tmp_path):
    sets = {
        "teacher.finetune.steps": 2, "teacher.finetune.batch": 4, "teacher.finetune.unlabelled": 4,
        "teacher.checks": 0, "distill.samples": 256, "distill.batch": 128, "adapt.steps": 10, "evaluate.px": [16],
        "evaluate.most": 30, "benchmark.batches": [1], "export.formats": ["onnx"], "data.test_share": 0.15,
    }  # fmt: skip
    # Whoever has one face alone is nobody known.
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if 24 < int(person[1:]) <= 32 and shot == "1":
            (tmp_path / "strangers" / person).mkdir(parents=True)
            assert cv2.imwrite(str(tmp_path / "strangers" / person / "1.png"), decode(record.data))
    command = ["--teacher", "dlib_resnet", "--student", "tiny16", "--data", str(people), "--teacher-method", "octuplet"]
    command += [part for key, value in sets.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    strangers = ["--data", str(tmp_path / "strangers"), "--set", "data.virtual=0"]
    done = CliRunner().invoke(pipeline, [*command, *strangers, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "fine-tuned by octuplet (2 steps)" in done.stderr
    # The average of two people is no stranger to them.
    alone = CliRunner().invoke(pipeline, [*command, "--set", "data.virtual=8", "--out", str(tmp_path / "alone")])
    assert alone.exit_code == 2
    assert "4 unlabelled faces a step were asked for and the data have 0" in alone.stderr
