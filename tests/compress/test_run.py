import dataclasses
import json
import logging
import multiprocessing
import os
import time

import cv2
import numpy as np
import pytest
import torch

from compress import run as run_module
from compress.config import load_config
from compress.run import Run, Stage, load_features, save_features
from faces.errors import UserError
from faces.files import lock

CONFIG = load_config("quick", None, {}, [])


def names(stages):
    return [stage.name for stage in stages]


class Chain:
    """Three stages in a row, a -> b -> c, whose runs are counted; each has a setting and a source of its own."""

    def __init__(self, root):
        self.root, self.ran, self.settings, self.broken = root, [], {"a": 1, "b": 1, "c": 1}, set()
        stages = []
        for name in "abc":
            (root / f"{name}.py").write_text(f"source of {name}")
            stages.append(
                Stage(
                    name,
                    lambda run, name=name: self.work(name),
                    lambda config, name=name: self.settings[name],
                    tuple(stages[-1:]),
                    (f"{name}.py",),
                )
            )
        self.stages = tuple(stages)

    def work(self, name):
        if name in self.broken:
            raise RuntimeError(name)
        self.ran.append(name)
        return {"summary": f"{name} worked", "value": len(self.ran)}

    def __call__(self, folder, only="abc"):
        """Run the stages in a folder; which of them worked."""
        self.ran = []
        with Run.open(folder, CONFIG, quiet=True) as run:
            for stage in self.stages:
                if stage.name in only:
                    run.execute(stage)
        return "".join(self.ran)


@pytest.fixture
def chain(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(run_module, "ROOT", tmp_path / "root")
    return Chain(tmp_path / "root")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


def test_a_stage_runs_once(chain, folder):
    assert chain(folder) == "abc"
    before = {file: file.read_bytes() for file in (folder / "stages").iterdir()}
    assert chain(folder) == ""
    assert {file: file.read_bytes() for file in (folder / "stages").iterdir()} == before


def test_what_a_stage_reported_is_kept(chain, folder):
    chain(folder)
    run = Run(folder, CONFIG, quiet=True)
    assert run.facts("b") == {"value": 2}
    assert run.record("b")["summary"] == "b worked"
    assert run.record("nothing") == {}


@pytest.mark.parametrize(("changed", "again"), [("a", "abc"), ("b", "bc"), ("c", "c")])
def test_a_change_of_settings_or_sources_reaches_what_comes_after(chain, folder, changed, again):
    chain(folder)
    chain.settings[changed] = 2
    assert chain(folder) == again
    (chain.root / f"{changed}.py").write_text("other source")
    assert chain(folder) == again
    assert chain(folder) == ""


def test_a_stage_that_broke_off_is_not_done_under_the_settings_before(chain, folder):
    """It may have overwritten what they made."""
    chain(folder)
    chain.settings["b"] = 2
    chain.broken = {"b"}
    with pytest.raises(RuntimeError):
        chain(folder)
    chain.settings["b"], chain.broken = 1, set()
    assert chain(folder) == "b"


def test_time_and_files_of_sessions_that_broke_off_count(chain, folder, monkeypatch):
    monkeypatch.setattr(run_module, "_KEPT_EVERY", 0.0)
    work, sessions = chain.work, []

    def told(name):
        sessions.append(name)
        if sessions == ["a"]:
            (folder / "early.txt").touch()
            time.sleep(0.3)
            raise KeyboardInterrupt
        time.sleep(0.1)
        return work(name)

    chain.work = told
    with pytest.raises(KeyboardInterrupt):
        chain(folder, "a")
    chain(folder, "a")
    record = Run(folder, CONFIG, quiet=True).record("a")
    assert 0.4 <= record["seconds"] < 5
    assert record["files"] == ["early.txt"]
    assert not list((folder / "work/begun").iterdir())
    # Other settings begin anew.
    sessions.clear()
    chain.settings["a"] = 2
    with pytest.raises(KeyboardInterrupt):
        chain(folder, "a")
    chain.settings["a"] = 3
    chain(folder, "a")
    assert Run(folder, CONFIG, quiet=True).record("a")["seconds"] < 0.3


def test_a_stage_on_another_runs_stages_is_not_run(chain, folder):
    chain(folder)
    chain.settings["a"] = 2
    assert chain(folder, "a") == "a"
    chain.settings["a"] = 1
    with pytest.raises(UserError, match="stage c needs b first"):
        chain(folder, "c")
    assert chain(folder) == "a"


def test_the_log_that_the_shell_keeps_is_no_stages_file(chain, folder, monkeypatch):
    folder.mkdir()
    with (folder / "nohup.out").open("w") as log:
        real = os.fstat
        monkeypatch.setattr(run_module.os, "fstat", lambda number: real(log.fileno() if number == 1 else number))
        work = chain.work

        def told(name):
            log.write(name)
            log.flush()
            (folder / f"{name}.txt").write_text(name)
            return work(name)

        chain.work = told
        assert chain(folder) == "abc"
    (folder / "nohup.out").unlink()
    assert Run(folder, CONFIG, quiet=True).record("b")["files"] == ["b.txt"]
    assert chain(folder) == ""


def test_a_log_that_another_process_keeps_is_no_stages_file(chain, folder):
    folder.mkdir()
    work = chain.work

    def told(name):
        (folder / "shell.log").write_text(name)
        return work(name)

    chain.work = told
    assert chain(folder) == "abc"
    assert all(Run(folder, CONFIG, quiet=True).record(name)["files"] == [] for name in "abc")
    (folder / "shell.log").unlink()
    assert chain(folder) == ""


def test_a_folder_of_sources_counts_with_its_templates(chain, folder, tmp_path):
    package = chain.root / "package"
    (package / "templates").mkdir(parents=True)
    (package / "code.py").touch()
    page = package / "templates" / "page.html.j2"
    page.touch()
    stage = Stage("a", lambda run: chain.work("a"), lambda config: None, (), ("package",))
    chain.stages = (stage,)
    assert chain(folder) == "a"
    (package / "notes.txt").write_text("no source")
    assert chain(folder) == ""
    page.write_text("changed")
    assert chain(folder) == "a"


def test_a_stage_that_raised_is_not_done(chain, folder):
    chain.broken = {"b"}
    with pytest.raises(RuntimeError):
        chain(folder)
    assert not (folder / "stages" / "b.json").exists()
    chain.broken = set()
    assert chain(folder) == "bc"


def test_a_stage_works_on_one_thread_and_leaves_the_number_as_it_was(chain, folder):
    before, seen = (torch.get_num_threads(), cv2.getNumThreads()), []
    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    work = chain.work
    chain.work = lambda name: seen.append((torch.get_num_threads(), cv2.getNumThreads())) or work(name)
    chain.broken = {"b"}
    try:
        with pytest.raises(RuntimeError):
            chain(folder)
        assert seen == [(1, 1), (1, 1)]
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_a_failed_rerun_leaves_no_later_stage_done(chain, folder):
    chain(folder)
    chain.settings["b"], chain.broken = 2, {"b"}
    with pytest.raises(RuntimeError):
        chain(folder)
    with pytest.raises(UserError, match="stage c needs b first"):
        chain(folder, only="c")
    chain.broken = set()
    assert chain(folder) == "bc"


def test_a_stage_alone_needs_those_before_it_up_to_date(chain, folder):
    with pytest.raises(UserError, match="stage b needs a first"):
        chain(folder, only="b")
    chain(folder)
    assert chain(folder, only="c") == ""
    chain.settings["a"] = 2
    with pytest.raises(UserError, match="stage c needs b first"):
        chain(folder, only="c")


def test_a_deleted_record_runs_that_stage_alone_again(chain, folder):
    chain(folder)
    (folder / "stages" / "a.json").unlink()
    with pytest.raises(UserError, match="stage a has not ended"):
        Run(folder, CONFIG, quiet=True).facts("a")
    assert chain(folder) == "a"


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xff", b'{"fingerprint": "x"}'])
def test_a_damaged_record_is_the_users_to_delete(chain, folder, content):
    chain(folder)
    record = folder / "stages" / "b.json"
    record.write_bytes(content)
    with pytest.raises(UserError, match=r"b\.json is damaged; delete it"):
        chain(folder)
    record.unlink()
    assert chain(folder) == "b"


def test_a_damaged_note_of_the_start_is_the_users_to_delete(chain, folder):
    chain(folder)
    (folder / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        Run(folder, CONFIG).started()


def test_the_start_is_kept_over_resumes_and_not_over_a_fresh_run(chain, folder):
    chain(folder)
    (folder / "run.json").write_text('{"started": "then"}')
    with Run.open(folder, CONFIG, quiet=True) as run:
        assert run.started() == "then"
    with Run.open(folder, CONFIG, quiet=True, fresh=True) as run:
        assert run.started() != "then"


@pytest.mark.parametrize("lost", [".lock", "run.json"])
def test_fresh_forgets_results_and_work_but_not_the_users_files(chain, folder, lost):
    chain(folder)
    (folder / "stages/data.json").write_text("{}")
    (folder / lost).unlink()
    for name in ("work/targets.npy", "results.json", "report.html", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    with Run.open(folder, CONFIG, quiet=True, fresh=True):
        pass
    assert not list((folder / "stages").iterdir())
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.json", "notes.txt", "run.json", "run.log", "stages",
    }  # fmt: skip


def test_fresh_in_a_folder_that_no_run_wrote_deletes_nothing(folder):
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "thesis.tex").write_text("years")
    (folder / "results.json").write_text("mine")
    with Run.open(folder, CONFIG, quiet=True, fresh=True):
        pass
    assert (folder / "work" / "thesis.tex").read_text() == "years"
    assert (folder / "results.json").read_text() == "mine"


def test_half_written_files_of_a_killed_run_are_removed(chain, folder):
    chain(folder)
    (folder / "work" / "chunks").mkdir(parents=True)
    half = [folder / ".student.abcd_123.tmp.onnx", folder / "work" / "chunks" / ".00000000.q2w3e4r5.tmp.npy"]
    kept = [folder / ".notes", folder / ".draft.tmp", folder / "work" / "chunks" / "00000000.npy"]
    for file in half + kept:
        file.touch()
    chain(folder)
    assert not any(file.exists() for file in half)
    assert all(file.exists() for file in kept)


def _hold(folder, held, release):
    with lock(folder):
        held.set()
        release.wait(30)


def test_a_folder_in_use_is_refused_and_left_alone(chain, folder):
    chain(folder)
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(folder, held, release))
    other.start()
    try:
        assert held.wait(30)
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for fresh in (False, True):
            with (
                pytest.raises(UserError, match="in use by another run"),
                Run.open(folder, load_config("paper", None, {}, []), quiet=True, fresh=fresh),
            ):
                pass
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    finally:
        release.set()
        other.join()
    assert chain(folder) == ""


@pytest.mark.parametrize("below", ["a file", "/proc/nothing"])
def test_an_unwritable_folder_is_the_users_mistake(tmp_path, below):
    (tmp_path / "a file").write_text("in the way")
    for folder in (tmp_path / below, tmp_path / below / "run"):
        with pytest.raises(UserError, match=r"cannot write to .*choose another --out"), Run.open(folder, CONFIG):
            pass
    assert (tmp_path / "a file").read_text() == "in the way"


def test_the_log_names_stages_and_is_closed(chain, folder):
    chain(folder)
    log = (folder / "run.log").read_text()
    assert log.index("command: ") < log.index("a begins") < log.index("a worked") < log.index("b begins")
    assert not logging.getLogger("bridgeface").handlers


# The pipeline's own stages.


def test_records_hold_json_alone(chain, folder):
    chain(folder)
    for file in (folder / "stages").iterdir():
        assert set(json.loads(file.read_text())) == {
            "fingerprint", "summary", "seconds", "cpu_seconds", "files", "facts", "ended",
        }  # fmt: skip


def test_a_stage_whose_file_was_deleted_runs_again_and_no_other(chain, folder):
    def write(run):
        run.path("b.txt").write_text("made by b")
        return chain.work("b")

    a, b, c = chain.stages
    b = dataclasses.replace(b, run=write)
    chain.stages = (a, b, dataclasses.replace(c, after=(b,)))
    assert chain(folder) == "abc"
    assert json.loads((folder / "stages/b.json").read_text())["files"] == ["b.txt"]
    assert chain(folder) == ""
    (folder / "b.txt").unlink()
    assert chain(folder) == "b"


def test_features_take_two_bytes_a_number_unless_they_are_too_large(tmp_path):
    features = np.random.default_rng(0).normal(0, 3, (40, 16)).astype(np.float32)
    save_features(tmp_path / "a.npy", features)
    assert np.load(tmp_path / "a.npy").dtype == np.float16
    found = load_features(tmp_path / "a.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, features, rtol=1e-3, atol=1e-6)
    features[3, 2] = 1e6
    save_features(tmp_path / "a.npy", features)
    np.testing.assert_array_equal(load_features(tmp_path / "a.npy"), features)
