"""Fine-tuning on a GPU, where there is one: the CPU's numbers are the oracle.

But for QGFace with its own augmentation, which is only trained and resumed here: its JPEG rounds coefficients, so that
noise in the last bits of the images parts two such runs further than the bound, on one CPU too.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from test_loop import CASES, NAMES, SCRATCH, largest_difference, moved
from trainings import people, small_teacher, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize(
    ("kind", "method", "changes"), [one for one in CASES if one[1:] != ("qgface", SCRATCH)], ids=str
)
def test_a_gpu_gives_the_weights_of_a_cpu(kind, method, changes, tmp_path) -> None:
    # Five steps of plain gradient descent in float64: Adam would turn rounding into whole steps.
    changes = changes | {"steps": 5, "optimiser": "sgd", "lr": 0.01, "precision": "64"}
    cpu = train(str(tmp_path / "cpu"), kind, method, **changes)
    gpu = train(str(tmp_path / "gpu"), kind, method, device="cuda", **changes)
    assert moved(cpu, kind) > 1e-4
    # Augmented images are float32, and a resize of the GPU's may round one of their 256 levels the other way.
    assert largest_difference(cpu, gpu) < 0.02 * moved(cpu, kind)


@pytest.mark.parametrize(("kind", "method", "changes"), CASES, ids=NAMES)
def test_a_run_that_was_stopped_on_a_gpu_ends_as_one_that_was_not(kind, method, changes, tmp_path) -> None:
    changes = changes | {"device": "cuda", "optimiser": "sgd", "lr": 0.01}
    whole = train(str(tmp_path / "whole"), kind, method, **changes)
    train(str(tmp_path / "cut"), kind, method, stop_after=3, **changes)
    resumed = train(str(tmp_path / "cut"), kind, method, **changes)
    assert largest_difference(whole, resumed) < 0.02 * moved(whole, kind)


def test_bfloat16_learns_what_float32_learns(tmp_path) -> None:
    both = [
        train(str(tmp_path / precision), "dlib_resnet", "octuplet", device="cuda", precision=precision, optimiser="sgd")
        for precision in ("32", "bf16")
    ]
    assert 0 < largest_difference(*both) < 0.5 * moved(both[0], "dlib_resnet")


@pytest.mark.parametrize(("kind", "method"), [("swin_b", "petalface"), ("swin_b", "full"), ("dlib_resnet", "octuplet")])
def test_fsdp_gives_the_weights_of_one_process_without_it(kind, method, tmp_path) -> None:
    """In processes of their own, as a process group cannot be left again."""
    found = {}
    for strategy in ("auto", "fsdp"):
        code = (
            "import torch; from trainings import train; torch.backends.cudnn.allow_tf32 = False\n"
            f"found = train({str(tmp_path / strategy)!r}, {kind!r}, {method!r}, device='cuda', strategy={strategy!r}, "
            "optimiser='sgd', lr=0.01, steps=4)\n"
            f"torch.save(found, {str(tmp_path / f'{strategy}.pt')!r})"
        )
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, 'tests/teachers')\n{code}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found[strategy] = torch.load(tmp_path / f"{strategy}.pt", weights_only=True)
    assert moved(found["auto"], kind) > 1e-4
    assert largest_difference(found["auto"], found["fsdp"]) < 1e-5


def test_embeddings_are_those_of_the_cpu() -> None:
    teacher, faces = small_teacher(), people(4, 2)
    cpu = teacher.embed_faces(faces, 14)
    gpu = teacher.to("cuda").embed_faces(faces, 14)
    np.testing.assert_allclose(gpu, cpu, atol=1e-4 * np.abs(cpu).max())
