"""Everything a user can get wrong on the command line: one line on stderr, exit code 2, nothing half-made."""

import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from compress import pipeline
from compress.pipeline import main
from faces.files import lock
from faces.sources import orl
from students.registry import create_student


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def no_heavy_work(monkeypatch):
    """Whatever comes after the data stage would be too late for a mistake that could be seen before."""

    def work(run):
        raise AssertionError("work began in spite of a user's mistake")

    for stage in pipeline.STAGES[1:]:
        monkeypatch.setitem(vars(stage), "run", work)


def refused(done, *words):
    """The message, after the checks that hold for every mistake."""
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]
    return lines[0]


def refused_before_a_folder_is_made(out, *arguments, words=()):
    message = refused(run("--teacher", "dlib_resnet", "--student", "tiny16", "--out", out, *arguments), *words)
    assert not out.exists(), "a run folder was made for a run that cannot be"
    return message


def people(folder, count, shots, suffix=".pgm"):
    """An identity folder of ORL faces."""
    for record in orl.read():
        person, shot = record.key.split("/")[1:]
        if int(person[1:]) <= count and int(shot) <= shots:
            (folder / person).mkdir(parents=True, exist_ok=True)
            (folder / person / f"{shot}{suffix}").write_bytes(record.data)
    return folder


def test_unknown_names(out):
    done = run("--teacher", "swin_x", "--student", "tiny16", "--out", out)
    refused(done, "unknown teacher 'swin_x'", "did you mean swin_b", "dlib_resnet")
    done = run("--teacher", "dlib_resnet", "--student", "tiny16x", "--out", out)
    refused(done, "unknown student 'tiny16x'", "did you mean tiny16", "tiny96")
    refused_before_a_folder_is_made(out, "--stages", "data,teach", words=["unknown stage 'teach'", "teacher, adapt"])
    done = run("--teacher", "dlib_resnet", "--teacher-method", "lore", "--out", out)
    assert (done.exit_code, "'lore' is not one of 'none', 'full', 'lora'" in done.stderr) == (2, True)


def test_click_refuses_what_it_knows_itself(out):
    seeds = [["--seed", "-1"], ["--seed", str(2**32)], ["--seed", "x"]]
    for arguments in (["--preset", "fast"], *seeds, ["--no-such-option"], ["stray"]):
        done = run("--teacher", "dlib_resnet", "--out", out, *arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: ")
        assert "Error: " in done.stderr
    assert run("--out", out).exit_code == 2  # no --teacher
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "distill.sample=5"], ["unknown setting 'distill.sample'", "did you mean 'distill.samples'"]),
        (["--set", "distill.samples"], ["key=value"]),
        (["--set", "distill.samples=-5"], ["distill.samples = -5"]),
        (["--set", "distill.lr=fast"], ["distill.lr = 'fast'"]),
        (["--config", "/nowhere/run.toml"], ["/nowhere/run.toml", "No such file"]),
        (["--device", "cuda:77"], ["cuda:77", "--device"]),
        (["--device", "nonsense"], ["nonsense"]),
        (["--device", "meta"], ["meta"]),
        (["--data", "/nowhere"], ["no face data at '/nowhere'"]),
        (["--val", "/nowhere"], ["no face data at '/nowhere'"]),
        (["--set", "data.pairs=/nowhere.csv"], ["no file /nowhere.csv"]),
        (["--teacher-weights", "/nowhere.pt"], ["/nowhere.pt"]),
        (["--student-weights", "/nowhere.safetensors"], ["/nowhere.safetensors"]),
        (["--teacher-weights", "hub"], ["dlib_resnet"]),
        (["--data", "~nosuchuser/x"], ["no face data at '~nosuchuser/x'"]),
        (["--data", ""], ["data.public is empty"]),
        (["--val", ""], ["data.val is empty"]),
        (["--teacher-weights", ""], ["teacher.weights is empty"]),
        (["--teacher", ""], ["teacher.name is empty"]),
    ],
)
def test_wrong_settings_and_missing_files(out, arguments, words):
    refused_before_a_folder_is_made(out, *arguments, words=words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(out):
    refused_before_a_folder_is_made(out, "--device", "cuda", words=["'cuda'", "leave --device out"])


def test_broken_configuration(tmp_path, out):
    file = tmp_path / "run.toml"
    for content in (b"[distill\n", b"\xff\xfe\x00", b"[distill]\nsample = 5\n"):
        file.write_bytes(content)
        refused_before_a_folder_is_made(out, "--config", file)


def test_a_dry_run_is_refused_like_a_run(out):
    refused_before_a_folder_is_made(out, "--dry-run", "--set", "distill.sample=5", words=["distill.samples"])


def test_an_empty_folder(tmp_path, out):
    (tmp_path / "empty").mkdir()
    refused_before_a_folder_is_made(
        out, "--data", tmp_path / "empty", words=["no face images in", "one folder a person"]
    )
    (tmp_path / "empty" / "ann").mkdir()
    refused_before_a_folder_is_made(out, "--data", tmp_path / "empty", words=["no face images in"])
    refused_before_a_folder_is_made(out, "--val", tmp_path / "empty", words=["no face images in"])


def test_a_folder_of_text_files(tmp_path, out):
    for person in ("ann", "bob"):
        (tmp_path / "text" / person).mkdir(parents=True)
        for name in ("one.txt", "two.md"):
            (tmp_path / "text" / person / name).write_text("no face")
    refused_before_a_folder_is_made(out, "--data", tmp_path / "text", words=["no face images in", ".png"])


def test_text_files_that_are_named_like_images(tmp_path, out):
    (tmp_path / "text" / "ann").mkdir(parents=True)
    for name in ("one.png", "two.jpg"):
        (tmp_path / "text" / "ann" / name).write_text("no face")
    done = run("--teacher", "dlib_resnet", "--data", tmp_path / "text", "--out", out)
    refused(done, "none of the 2 records", "unreadable image: 2")
    no_results(out)


def no_results(out):
    """A run that failed in its data stage: settings and log, and nothing that looks like a result."""
    assert {path.name for path in out.iterdir()} <= {".lock", "config.json", "run.json", "run.log", "stages"}
    assert not list((out / "stages").iterdir())


def test_one_identity_only(tmp_path, out):
    faces = people(tmp_path / "faces", 1, 6)
    done = run("--teacher", "dlib_resnet", "--data", faces, "--out", out, "--set", "data.aligned=true")
    refused(done, "holds 1 identity", "at least 4")
    no_results(out)


def test_test_people_that_form_too_few_pairs(tmp_path, out):
    faces = people(tmp_path / "faces", 4, 2)
    done = run("--teacher", "dlib_resnet", "--data", faces, "--out", out, "--set", "data.aligned=true")
    refused(done, "genuine", "add faces or people")
    no_results(out)


def test_test_people_that_are_training_people(tmp_path, out):
    faces = people(tmp_path / "faces", 6, 5)
    done = run("--teacher", "dlib_resnet", "--data", faces, "--val", faces, "--out", out, "--set", "data.aligned=true")
    refused(done, "not independent", "data.allow_leaks=true")
    no_results(out)


def test_the_same_data_twice(tmp_path, out):
    faces = people(tmp_path / "faces", 4, 4)
    done = run("--teacher", "dlib_resnet", "--data", faces, "--data", faces, "--out", out, "--set", "data.aligned=true")
    refused(done, "given twice")
    no_results(out)


def test_pairs_of_faces_that_are_not_there(tmp_path, out):
    faces = people(tmp_path / "faces", 6, 5)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("key_a,key_b,same,fold\nnobody/1.pgm,nobody/2.pgm,1,0\n")
    arguments = ["--data", faces, "--out", out, "--set", "data.aligned=true", "--set", f"data.pairs={pairs}"]
    refused(run("--teacher", "dlib_resnet", *arguments), "pairs.csv names 2 faces")
    no_results(out)


def test_an_unknown_detector(tmp_path, out):
    faces = people(tmp_path / "faces", 4, 4)
    done = run("--teacher", "dlib_resnet", "--data", faces, "--out", out, "--set", "data.detector=haar")
    refused(done, "haar", "dlib")
    no_results(out)


def test_a_truncated_shard(tmp_path, out):
    faces = people(tmp_path / "faces", 4, 4)
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as archive:
        for file in sorted(faces.rglob("*.pgm")):
            archive.add(file, f"{file.parent.name}-{file.name}")
    shard.write_bytes(shard.read_bytes()[:30_000])
    refused(run("--teacher", "dlib_resnet", "--data", shard, "--out", out), "cannot be read as a tar shard")
    no_results(out)


def state(seed=0, **shapes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(path: Path, tensors):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("teacher", ["dlib_resnet", "swin_b"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_checkpoints_of_a_teacher(tmp_path, out, teacher, suffix):
    whole = write(tmp_path / f"other{suffix}", state(weight=(64, 64), bias=(64,)))
    arguments = ("--teacher", teacher, "--out", out, "--teacher-weights")
    refused(run(*arguments, whole), f"other{suffix}", "another network", "missing")
    content = whole.read_bytes()
    for length in (0, 4, len(content) // 2, len(content) - 1):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(content[:length])
        refused(run(*arguments, cut), f"cut{suffix}")
    text = tmp_path / f"text{suffix}"
    text.write_text("I am no checkpoint\n" * 50)
    refused(run(*arguments, text), f"text{suffix}")
    assert not out.exists()


def test_a_pickle_is_never_executed(tmp_path, out):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    refused_before_a_folder_is_made(out, "--teacher-weights", tmp_path / "evil.pt", words=["evil.pt"])
    assert not (tmp_path / "executed").exists()


def test_a_truncated_dat_file(tmp_path, out):
    from teachers.registry import DLIB_PACKAGE
    from teachers.weights import package_file

    cut = tmp_path / "cut.dat"
    cut.write_bytes(package_file(*DLIB_PACKAGE).read_bytes()[:1_000_000])
    refused_before_a_folder_is_made(out, "--teacher-weights", cut, words=["cut.dat"])


def test_checkpoints_of_a_student(tmp_path, out):
    other = write(tmp_path / "other.safetensors", state(weight=(64, 64)))
    refused_before_a_folder_is_made(out, "--student-weights", other, words=["other.safetensors", "tiny16"])
    good = write(tmp_path / "good.safetensors", create_student("tiny16").state_dict())
    content = good.read_bytes()
    for length in (0, 4, len(content) // 2, len(content) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(content[:length])
        refused_before_a_folder_is_made(out, "--student-weights", cut, words=["cut.safetensors", "tiny16"])
    refused_before_a_folder_is_made(out, "--student-weights", tmp_path, words=[str(tmp_path)])


@pytest.mark.parametrize("below", ["a file", "a file/run", "/proc/nothing/run"])
def test_an_unwritable_out(tmp_path, below):
    (tmp_path / "a file").write_text("in the way")
    for extra in ([], ["--fresh"]):
        done = run("--teacher", "dlib_resnet", "--out", tmp_path / below, *extra)
        refused(done, "cannot write to", "choose another --out")
    assert (tmp_path / "a file").read_text() == "in the way"


def test_a_disk_that_is_full(tmp_path, out):
    faces = people(tmp_path / "faces", 6, 5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of one file fails in the same place, and can be had here.
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        done = run("--teacher", "dlib_resnet", "--data", faces, "--out", out, "--set", "data.aligned=true")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(done, "work/train.npz: File too large")
    assert not list((out / "stages").iterdir())
    assert not list((out / "work").iterdir())


def test_an_out_that_another_run_holds(out):
    out.mkdir()
    with lock(out):
        refused(run("--teacher", "dlib_resnet", "--out", out), "in use by another run")
    assert {path.name for path in out.iterdir()} == {".lock"}


def test_stages_before_their_turn(out):
    refused(run("--teacher", "dlib_resnet", "--out", out, "--stages", "export,report"), "stage export needs distill")
    no_results(out)


def test_a_damaged_run_folder(out):
    (out / "stages").mkdir(parents=True)
    (out / "stages" / "data.json").write_bytes(np.random.default_rng(0).bytes(100))
    refused(run("--teacher", "dlib_resnet", "--out", out), "data.json is damaged", "delete it")
