"""A run that is killed with SIGKILL inside every stage ends as one that is not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from compress.pipeline import STAGES

ROOT = Path(__file__).parents[2]
NAMES = [stage.name for stage in STAGES]
# Distilling takes long enough for a checkpoint (one every ten seconds), everything else is small.
SETTINGS = (
    "distill.samples=80000", "data.virtual=0", "evaluate.px=[16]", "evaluate.most=100", "benchmark.batches=[1, 8]",
)  # fmt: skip
TIMEOUT = 300


def start(out):
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    arguments = ["--teacher", "dlib_resnet", "--student", "tiny16", "--out", str(out), *settings]
    return subprocess.Popen(
        [sys.executable, "-m", "compress.pipeline", *arguments],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(out):
    process = start(out)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors


def begun(out, stage):
    """How often a stage has begun, by the log."""
    log = out / "run.log"
    return len(re.findall(rf" {stage} begins$", log.read_text(), re.MULTILINE)) if log.exists() else 0


def kill_inside(out, stage, ready=lambda: True, delay=0.0):
    """Start the command, wait until `stage` begins and `ready()` holds, and kill the process group."""
    before, process = begun(out, stage), start(out)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (begun(out, stage) > before and ready()):
            assert process.poll() is None, f"ended before it could be killed in {stage}: {process.communicate()[1]}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not record(out, stage).exists(), f"{stage} ended before the kill"


def record(out, stage):
    return out / "stages" / f"{stage}.json"


def ended(out):
    """Record of each ended stage, with the time it was written."""
    return {
        stage: (record(out, stage).read_bytes(), record(out, stage).stat().st_mtime_ns)
        for stage in NAMES
        if record(out, stage).exists()
    }


@pytest.mark.slow
def test_killed_inside_every_stage(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)

    def checkpoint():
        return any((killed / "work").glob("student-*.pt"))

    # Into the work of a stage, but not past the end of the short ones.
    delays = {"data": 1.5, "teacher": 0.5, "distill": 2.0, "export": 1.0, "evaluate": 0.3, "benchmark": 0.3}
    done = {}
    for stage in NAMES:
        kill_inside(killed, stage, delay=delays.get(stage, 0.0))
        assert set(ended(killed)) == set(NAMES[: NAMES.index(stage)])
        if stage == "distill":
            assert not checkpoint()
            kill_inside(killed, stage, ready=checkpoint, delay=1.5)
        after = ended(killed)
        assert {name: after[name] for name in done} == done, "a stage that had ended ran again"
        done = after
    finish(killed)
    after = ended(killed)
    assert {name: after[name] for name in done} == done
    assert set(after) == set(NAMES)
    assert begun(killed, "distill") == 3
    assert [begun(killed, stage) for stage in NAMES if stage != "distill"] == [2] * (len(NAMES) - 1)

    for name in ("student.safetensors", "adapter.safetensors", "work/features.npy", "work/targets.npy", "curves.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    mine, other = (json.loads((out / "results.json").read_text()) for out in (killed, whole))
    assert mine["accuracy"] == other["accuracy"]
    assert [row["parity"] for row in mine["artifacts"]] == [row["parity"] for row in other["artifacts"]]
    assert [row["path"] for row in mine["artifacts"]] == ["student.onnx", "student.tflite"]
    assert mine["data"] == other["data"]
    assert np.isfinite(np.load(killed / "work/targets.npy")).all()
    assert (killed / "report.html").is_file()
    # Nothing half-written is left.
    assert not [file for file in killed.rglob(".*") if file.name != ".lock"]
    assert not list((killed / "work").glob("*.pt"))
    files = ({str(file.relative_to(out)) for file in out.rglob("*")} for out in (killed, whole))
    assert len(set(map(frozenset, files))) == 1
