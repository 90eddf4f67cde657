"""A student trained by two processes is the student of one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_on

from faces.distributed import rank
from faces.errors import UserError
from students import create_student
from students.batches import Examples, Recipe
from students.train import train_student

_HOW = Recipe(samples=20 * 32, batch=32, lr=1e-3, average=0.9)


class _Killed(Exception):
    pass


def _train(how: Recipe, checkpoint: str | None = None, killed_at: int | None = None) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    examples = Examples(crops, 0.1, rng.standard_normal((80, 32)).astype(np.float32), np.arange(80) % 11 - 1)
    torch.manual_seed(3)
    student = create_student("tiny16").double()  # float32 rounds: AdamW makes whole steps of what is zero but for that
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if done == killed_at:
            raise _Killed

    try:
        curve = train_student(
            student, examples, how, 5, "cpu", checkpoint and Path(checkpoint), progress, checkpoint_seconds=0
        )
    except _Killed:
        return {}
    return student.state_dict() | {"loss": torch.tensor([row["loss"] for row in curve])}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"loss": "regression", "optimiser": "sgd"},
        {"optimiser": "muon"},
        {"versions": 2},
        {"class_loss": "center"},
        {"class_loss": "sphereface+"},
    ],
)
def test_two_processes_give_the_student_of_one(change):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = _train(replace(_HOW, **change))
    torch.set_num_threads(threads)
    first, second = run_on(2, _train, replace(_HOW, **change))
    for name, value in alone.items():
        torch.testing.assert_close(
            first[name], value, atol=1e-4, rtol=1e-4, msg=lambda told, name=name: f"{name}: {told}"
        )
        torch.testing.assert_close(second[name], first[name], atol=0, rtol=0)


def test_two_killed_processes_continue_to_the_same_student(tmp_path):
    whole = run_on(2, _train, _HOW)[0]
    checkpoint = str(tmp_path / "student.pt")
    assert run_on(2, _train, _HOW, checkpoint, 7) == [{}, {}]
    assert (tmp_path / "student.pt").is_file()
    for state in run_on(2, _train, _HOW, checkpoint):
        for name, value in whole.items():
            assert torch.equal(state[name], value), name


def _refused() -> str:
    with pytest.raises(UserError) as problem:
        _train(replace(_HOW, batch=33))
    return f"{rank()}: {problem.value}"


def test_a_batch_that_cannot_be_shared_is_refused():
    told = "a batch of 33 faces cannot be shared by 2 processes; set distill.batch"
    assert run_on(2, _refused) == [f"0: {told}", f"1: {told}"]
