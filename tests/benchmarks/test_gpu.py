"""No GPU is at hand: the parts that run anywhere run on the CPU, and the clock on events that a test makes."""

from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, gpu_backends, gpu_clock
from faces.errors import UserError


def test_without_a_gpu_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(gpu.engines, "driver", lambda: None)
    done = CliRunner().invoke(gpu.main, [])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: no NVIDIA driver or no GPU here: run this on a machine with one (nvidia-smi shows it)\n"
    )


def test_a_torch_without_cuda_is_one_sentence(monkeypatch):
    monkeypatch.setattr(gpu.engines, "driver", lambda: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = CliRunner().invoke(gpu.main, [])
    assert done.exit_code == 2
    assert "install a CUDA build of torch" in done.stderr


class _Event:
    """A CUDA event on a clock that only calls move."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing
        self.at = None

    def record(self, stream):
        assert stream == "stream"
        self.at = _Event.now

    def synchronize(self):
        assert self.at is not None

    def elapsed_time(self, end):
        return end.at - self.at


def test_events_give_the_exact_rate(monkeypatch):
    monkeypatch.setattr("torch.cuda.Event", _Event)
    calls = []

    def call():
        calls.append(1)
        _Event.now += 2.0

    found = gpu_clock.faces_per_second(call, 64, "cuda", "stream")
    assert found["faces_per_second"] == pytest.approx(32_000)
    assert (found["iqr"], found["ms"]) == (pytest.approx(0), pytest.approx(2))
    # Three and three calls and half a window of warm-up, then ten windows of 50 ms.
    assert len(calls) == 3 + 3 + 12 + 10 * 25


def test_a_failure_is_a_row_with_its_reason():
    def missing():
        raise UserError("TensorRT is not installed")

    def broken():
        raise torch.cuda.OutOfMemoryError("out of memory\nmore lines")

    assert gpu_backends.attempt({"runtime": "a"}, missing) == [{"runtime": "a", "not_run": "TensorRT is not installed"}]
    (row,) = gpu_backends.attempt({"runtime": "a"}, broken)
    assert row["not_run"].endswith("out of memory")


def test_engines_are_held_to_their_model_and_timed(monkeypatch, tmp_path):
    """The order of things around an engine, the engine itself replaced at its boundary by the ONNX file."""
    import numpy as np

    import export

    subject = gpu.subject_of("tiny16", None, "student")
    real = gpu_backends.export_model

    def exported(one, folder, how):
        assert how.formats == ("tensorrt-rtx",)
        assert how.capabilities == ("SM89",)
        rows, _ = real(one, folder, gpu_backends.How(("onnx",), ("fp32",)))
        return [rows[0] | {"format": "tensorrt-rtx"}], []

    class Runner:
        def __init__(self, file, contract):
            self.artifact = export.load(file)

        def enqueue(self, faces):
            return lambda: self.artifact.run(faces), None

    clock = gpu_backends.faces_per_second
    monkeypatch.setattr(gpu_backends, "export_model", exported)
    monkeypatch.setattr(gpu_backends, "EngineRunner", Runner)
    monkeypatch.setattr(
        gpu_backends, "faces_per_second", lambda call, batch, device, stream=None: clock(call, batch, "cpu")
    )
    rows = gpu_backends.engine_rows(subject, tmp_path, "tensorrt-rtx", "fp32", "SM89", (1, 8))
    assert [row["batch"] for row in rows] == [1, 8]
    assert all(row["parity"]["passed"] for row in rows)
    assert np.all([row["faces_per_second"] > 0 and row["faces_per_second_with_copies"] > 0 for row in rows])


def test_the_clock_of_a_cpu_and_its_memory():
    rate = gpu_clock.faces_per_second(lambda: torch.rand(10), 4, "cpu")
    assert rate["faces_per_second"] == pytest.approx(4e3 / rate["ms"], rel=0.5)
    assert gpu_clock.peak_memory("cpu", lambda: 7) == (7, None)
    assert SimpleNamespace(**gpu_clock.matrix_peak("cpu")).fp32 > 1
