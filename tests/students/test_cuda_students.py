"""Distillation on a GPU, where there is one: the CPU's numbers are the oracle."""

from dataclasses import replace

import pytest
import torch
from few_faces import SHORT, few_crops, few_examples, fresh_student

from faces.degrade import Degradation, degrade, jpeg
from students.train import train_student

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")
# Nothing random: a GPU's random numbers are others than a CPU's.
STILL = Degradation(0, 0, 0, flip=0, blur=0, gain=0, bias=0, colour=0, grey=0, jpeg=0)


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def _largest_difference(a, b):
    return max(
        float((x - y).abs().max()) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("changes", [{}, {"loss": "regression"}, {"versions": 2}, {"average": 0.9}])
def test_a_gpu_gives_the_student_of_a_cpu(changes):
    recipe = replace(SHORT, degradation=STILL, optimiser="sgd", **changes)
    cpu, gpu = fresh_student(), fresh_student()
    expected = train_student(cpu, few_examples(), recipe, 0)
    curve = train_student(gpu, few_examples(), recipe, 0, "cuda")
    assert curve[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-3)
    # Fixed versions are rounded to 256 levels, and a level on the edge may be rounded the other way.
    bound = 5e-3 if recipe.versions else 1e-3
    assert _largest_difference(cpu, gpu) < bound < _largest_difference(cpu, fresh_student())


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_run_begun_on_a_gpu_goes_on(tmp_path, device):
    checkpoint, done = tmp_path / "student.pt", []

    def stop(count):
        done.append(count)
        if len(done) == 6:
            raise KeyboardInterrupt

    recipe = replace(SHORT, degradation=STILL, optimiser="sgd")
    whole, cut = fresh_student(), fresh_student()
    train_student(whole, few_examples(), recipe, 0, "cuda")
    with pytest.raises(KeyboardInterrupt):
        train_student(fresh_student(), few_examples(), recipe, 0, "cuda", checkpoint, stop, checkpoint_seconds=0)
    done.clear()
    train_student(cut, few_examples(), recipe, 0, device, checkpoint, done.append)
    assert done[0] == 4
    assert _largest_difference(whole, cut) < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns(precision):
    recipe = replace(SHORT, samples=4000, precision=precision)
    curve = train_student(fresh_student(), few_examples(), recipe, 0, "cuda")
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


def test_degraded_faces_are_those_of_the_cpu():
    crops = torch.from_numpy(few_crops()).permute(0, 3, 1, 2)
    both = [degrade(crops.to(d), 16, 0.1, STILL, torch.Generator(d).manual_seed(0)).cpu() for d in ("cpu", "cuda")]
    assert torch.allclose(*both, atol=1e-5)
    quality = torch.linspace(5, 95, len(crops))
    small = torch.rand(len(crops), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cpu, gpu = jpeg(small, quality), jpeg(small.cuda(), quality.cuda()).cpu()
    # A coefficient on the edge of two steps may be rounded the other way.
    assert ((cpu - gpu).abs() > 1e-3).float().mean() < 0.01
