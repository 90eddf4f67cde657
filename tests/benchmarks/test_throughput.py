import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import peak, throughput, timing

FIELDS = {
    "artifact": str, "runtime": str, "device": str, "threads": int, "batch": int, "precision": str,
    "input_px": int, "preprocessing": bool, "faces_per_second": float, "iqr": float, "p50_ms": float,
    "p99_ms": float, "peak_gops": float, "share": float,
}  # fmt: skip


class _Clock:
    """Time that passes only while a model runs: call k takes `durations[k]`, then the last one for ever."""

    def __init__(self, durations):
        self.now, self.calls, self.durations = 0.0, 0, durations

    def __call__(self):
        return self.now

    def run(self, _):
        self.now += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1


def _artifact(clock, threads=1, macs=1_000_000):
    return SimpleNamespace(
        path=SimpleNamespace(name="s.onnx"), runtime="none 1", threads=threads, run=clock.run,
        prepare=lambda images: images,
        sidecar=SimpleNamespace(input=SimpleNamespace(px=16), precision="fp32", macs=macs),
    )  # fmt: skip


@pytest.fixture
def peak_of_100(monkeypatch):
    monkeypatch.setattr(timing, "sgemm_gops", lambda threads: 100.0)


def test_a_steady_model_gets_its_exact_figures(peak_of_100):
    clock = _Clock([0.004])
    row = timing.measure(_artifact(clock), 32, clock=clock)
    assert {name: type(value) for name, value in row.items()} == FIELDS
    assert row["faces_per_second"] == pytest.approx(8000)
    assert (row["p50_ms"], row["p99_ms"]) == pytest.approx((4, 4))
    assert row["iqr"] == pytest.approx(0, abs=1e-6)
    # 8,000 faces a second of a million multiply-accumulates each: 16 of 100 GFLOP/s.
    assert row["share"] == pytest.approx(0.16)
    assert row["preprocessing"] is False


def test_slow_first_calls_are_warm_up(peak_of_100):
    clock = _Clock([5.0, 1.0, 1.0, 0.004])
    row = timing.measure(_artifact(clock), 1, clock=clock)
    assert row["faces_per_second"] == pytest.approx(250)
    assert row["p99_ms"] == pytest.approx(4)


def test_windows_are_long_and_many_enough(peak_of_100):
    fast, slow, very_slow = _Clock([1e-3]), _Clock([0.03]), _Clock([1.0])
    timing.measure(_artifact(fast), 1, clock=fast)
    # Ten windows of at least 50 ms, after a warm-up of 100 ms.
    assert 10 * 50 <= fast.calls - 100 <= 10 * 51 + 4
    timing.measure(_artifact(slow), 1, clock=slow)
    # Two calls fill a window; more windows than ten are run until 100 calls are timed.
    assert slow.calls == 100 + 4
    timing.measure(_artifact(very_slow), 1, clock=very_slow)
    # One call is longer than a window, and five seconds have passed before the tenth window.
    assert very_slow.calls == 10 + 3


def test_summary_is_numpys():
    rng = np.random.default_rng(0)
    rates, calls = rng.uniform(9e3, 11e3, 13).tolist(), rng.lognormal(-7, 1, 117).tolist()
    found = timing.summary(rates, calls, macs=1_470_464, peak_gops=120.0)
    assert found["faces_per_second"] == sorted(rates)[6]
    assert found["iqr"] == pytest.approx(np.quantile(rates, 0.75) - np.quantile(rates, 0.25))
    assert found["p50_ms"] == pytest.approx(1e3 * sorted(calls)[58])
    assert found["p99_ms"] == pytest.approx(1e3 * np.quantile(calls, 0.99))
    assert found["share"] == pytest.approx(sorted(rates)[6] * 2.940928e6 / 120e9)


def test_the_peak_is_measured_once_and_plausible():
    one = peak.sgemm_gops(1)
    assert peak.sgemm_gops(1) == one
    # Any core since 2010 to any core there is.
    assert 1 < one < 2000


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Rows of `--student tiny16`, as its own process writes them."""
    file = tmp_path_factory.mktemp("speed") / "speed.json"
    command = [sys.executable, "-m", "benchmarks.throughput", "--student", "tiny16", "--json", str(file)]
    done = subprocess.run(
        [*command, "--batch", "1", "--batch", "32", "--batch", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(rows=json.loads(file.read_text())["throughput"], out=done.stdout, err=done.stderr)


def test_cli_times_a_student_by_name(written):
    assert [(row["artifact"], row["batch"]) for row in written.rows] == [
        ("tiny16.onnx", 1), ("tiny16.onnx", 32), ("tiny16.tflite", 1), ("tiny16.tflite", 32),
    ]  # fmt: skip
    for row in written.rows:
        assert {name: type(value) for name, value in row.items()} == FIELDS
        assert (row["device"], row["threads"], row["precision"], row["input_px"]) == ("cpu", 1, "fp32", 16)
        assert row["p50_ms"] <= row["p99_ms"]
        assert row["share"] == pytest.approx(row["faces_per_second"] * 2 * 1_470_464 / (row["peak_gops"] * 1e9))
    assert {row["runtime"].split()[0] for row in written.rows} == {"onnxruntime", "ai-edge-litert"}
    assert all(row["faces_per_second"] > 100 for row in written.rows)


def test_cli_prints_a_table_and_no_noise(written):
    assert "faces/s" in written.out
    assert "…" not in written.out  # nothing cut off at 80 columns
    assert written.err == "exporting tiny16 with random weights\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --student NAME or --artifact FILE"),
        (["--student", "tiny16", "--artifact", "a.onnx"], "give either --student NAME or --artifact FILE"),
        (["--student", "tiny15"], "unknown student 'tiny15'; did you mean tiny16?"),
        (["--artifact", "no.onnx"], "no.onnx: no such file"),
        (["--student", "tiny16", "--device", "cuda"], "use --device cpu"),
        (["--student", "tiny16", "--json", f"{__file__}/a.json"], "choose another --json"),
        (["--student", "tiny16", "--markdown", f"{__file__}/a.md"], "choose another --markdown"),
        (["--student", "tiny16", "--plot", "a.xyz"], "--plot is written as .svg or .png"),
        (["--student", "tiny16", "--loadgen-seconds", "60"], "give --loadgen too"),
        (["--student", "tiny16", "train"], "--student in front of train changes nothing"),
        (["train", "--json", f"{__file__}/a.json"], "choose another --json"),
        (["scale", "--json", f"{__file__}/a.json"], "choose another --json"),
    ],
)
def test_cli_tells_a_mistake_in_one_line(arguments, message):
    done = CliRunner().invoke(throughput.main, arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_cuda_without_a_gpu_is_said(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = CliRunner().invoke(throughput.main, ["--student", "tiny16", "--device", "cuda"])
    assert done.exit_code == 2
    assert done.stderr == "error: no CUDA device is available on this machine; use --device cpu\n"


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--windows", "9"], ["--batch", "0"], ["--device", "tpu"]])
def test_cli_refuses_values_out_of_range(arguments):
    assert CliRunner().invoke(throughput.main, ["--student", "tiny16", *arguments]).exit_code == 2


def test_help_teaches():
    text = CliRunner().invoke(throughput.main, ["--help"]).output
    assert "python -m benchmarks.throughput --student tiny16" in text
    assert "own peak" in text
