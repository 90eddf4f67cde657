"""The pipeline on two processes gives what it gives on one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

_RUN = ["--teacher", "dlib_resnet", "--student", "tiny16", "--stages", "data,teacher,adapt,distill",
        "--set", "distill.samples=2560", "--set", "distill.lr=1e-4", "--set", "data.virtual=50"]  # fmt: skip
_TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def _pipeline(folder: Path, *more: str, processes: int = 2) -> subprocess.CompletedProcess:
    start = _TORCHRUN if processes == 2 else []
    command = [sys.executable, *start, "-m", "compress.pipeline", *_RUN, "--out", str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.slow
def test_two_processes_share_the_work_and_give_the_same(tmp_path):
    alone, shared = (_pipeline(tmp_path / str(count), processes=count) for count in (1, 2))
    assert alone.returncode == 0, alone.stderr
    assert shared.returncode == 0, shared.stderr
    features = [np.load(tmp_path / count / "work/features.npy") for count in "12"]
    np.testing.assert_allclose(features[1], features[0], atol=1e-5)
    first, second = (load_file(tmp_path / count / "student.safetensors") for count in "12")
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, atol=2e-3, err_msg=name)
    assert json.loads((tmp_path / "2/stages/distill.json").read_text())["facts"]["mode"] == "sc"
    again = _pipeline(tmp_path / "2")
    assert again.stderr.count("done before") == 4


@pytest.mark.slow
def test_a_users_mistake_ends_all_processes(tmp_path):
    done = _pipeline(tmp_path, "--data", str(tmp_path / "nowhere"))
    assert done.returncode != 0
    assert "nowhere" in done.stderr
    tuned = _pipeline(tmp_path / "tuned", "--teacher-method", "octuplet", "--set", "teacher.finetune.steps=1")
    assert tuned.returncode != 0
    assert "torchrun -m teachers.finetune" in tuned.stderr
