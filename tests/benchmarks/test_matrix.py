import json
import os

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from threadpoolctl import threadpool_info, threadpool_limits

import export
from benchmarks import (
    cpu_runtimes,
    latency,
    loadgen,
    machine,
    matrix,
    memory,
    noise,
    peak,
    plots,
    speed_table,
    throughput,
)
from faces.errors import UserError


def _row(rate, iqr, **changes):
    row = {
        "artifact": "s.onnx", "runtime": "onnxruntime 1.0", "device": "cpu", "threads": 1, "batch": 32,
        "precision": "fp32", "input_px": 16, "preprocessing": False, "faces_per_second": rate, "iqr": iqr,
        "p50_ms": 1.0, "p99_ms": 2.0, "peak_gops": 100.0, "share": 0.1,
    }  # fmt: skip
    return row | changes


def test_two_passes_agree_within_the_spread_that_they_state():
    rows = noise.joined(
        [_row(1000.0, 50.0), _row(500.0, 10.0, batch=1)], [_row(940.0, 60.0), _row(500.0, 15.0, batch=1)]
    )
    assert [row["faces_per_second"] for row in rows] == [1000.0, 500.0]
    assert [row["iqr"] for row in rows] == [60.0, 15.0]
    assert noise.verdict(rows)["quiet"] is True
    apart = noise.joined([_row(1000.0, 50.0)], [_row(900.0, 60.0)])
    found = noise.verdict([*rows, *apart])
    assert (found["quiet"], found["apart"], found["rows"]) == (False, 1, 3)
    assert found["most_apart"] == pytest.approx(0.1)
    assert "too noisy: in 1 of 3 rows" in found["text"]


def test_passes_of_two_files_of_one_name_stay_apart():
    rows = noise.joined([_row(1000.0, 1.0), _row(10.0, 1.0)], [_row(1000.0, 1.0), _row(10.0, 1.0)])
    assert [row["passes"] for row in rows] == [
        {"medians": [1000.0, 1000.0], "agree": True}, {"medians": [10.0, 10.0], "agree": True},
    ]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
def test_the_figure_of_a_free_core_is_of_one_thread_alone(tiny_files, threads):
    runner = cpu_runtimes.open_runner(tiny_files["fp32"], "onnxruntime", threads)
    row = latency.full_row(runner, 2, [0], windows=1)
    line = speed_table.markdown([row], ["faces/s, free core", "of peak, free core"]).splitlines()[-1]
    if threads == 1:
        assert row["scaled"]["faces_per_second"] > 0
        assert line.endswith("% |")
    else:
        assert row["scaled"] == {"faces_per_second": None, "share": None}
        assert line == "| - | - |"


def test_a_runtimes_version_does_not_part_rows():
    assert noise.key(_row(1, 0)) == noise.key(_row(2, 0, runtime="onnxruntime 2.0"))
    assert noise.key(_row(1, 0)) != noise.key(_row(1, 0, preprocessing="bytes to tensor"))


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_openvino_computes_what_onnxruntime_does(tiny_files, some_faces, name):
    pytest.importorskip("openvino")
    ours = cpu_runtimes.open_runner(tiny_files[name], "openvino", 1)
    theirs = export.load(tiny_files[name])
    for count in (5, 2):
        found, wanted = ours.run(ours.prepare(some_faces[:count])), theirs.embed(some_faces[:count])
        cosine = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosine.min() > (0.999999 if name == "fp32" else 0.98)
    assert ours.runtime.startswith("openvino 20")


def test_a_runtime_that_computes_something_else_is_refused(tiny_files, some_faces, monkeypatch):
    pytest.importorskip("openvino")
    ours = cpu_runtimes.open_runner(tiny_files["fp32"], "openvino", 1)
    noise, wanted = ours._expected
    monkeypatch.setattr(ours, "_expected", (noise, -wanted), raising=False)
    with pytest.raises(UserError, match="something else than onnxruntime"):
        ours.run(ours.prepare(some_faces))


def test_a_missing_runtime_is_a_row_with_its_reason(tiny_files, monkeypatch):
    monkeypatch.setattr(cpu_runtimes, "installed", lambda name: name == "onnxruntime")
    monkeypatch.setattr(matrix, "installed", lambda name: name == "onnxruntime")
    how = matrix.Matrix(runtimes=tuple(cpu_runtimes.RUNTIMES), batches=(2,))
    rows, missing = matrix.run([tiny_files["fp32"], tiny_files["tflite"]], how)
    assert [(row["artifact"], row["batch"]) for row in rows] == [("tiny16.onnx", 2)]
    assert {(row["artifact"], row["runtime"]) for row in missing} == {
        ("tiny16.onnx", "openvino"), ("tiny16.tflite", "litert"), ("tiny16.tflite", "tflite-runtime"),
    }  # fmt: skip
    assert all("not installed: pip install" in row["not_run"] for row in missing)
    with pytest.raises(UserError, match="none of the runtimes asked for"):
        matrix.run([tiny_files["tflite"]], how)


def test_rows_name_cores_percentiles_and_preprocessing(tiny_files):
    before = os.sched_getaffinity(0)
    how = matrix.Matrix(runtimes=("onnxruntime",), batches=(1, 4), passes=2, preprocessing=True)
    rows, missing = matrix.run([tiny_files["int8"]], how)
    assert os.sched_getaffinity(0) == before
    assert missing == []
    assert [(row["batch"], row["preprocessing"]) for row in rows] == [
        (1, False), (4, False), (1, "bytes to tensor"), (1, "128 px crop and landmarks to tensor"),
    ]  # fmt: skip
    one = rows[0]
    assert len(one["cores"]) == 1
    assert set(one["cores"]) <= before
    assert one["hot"]["p50_ms"] <= one["hot"]["p90_ms"] <= one["hot"]["p99_ms"]
    assert one["paused"]["pause_ms"] == 20
    assert one["arithmetic"] == "int8"
    assert one["peak_gops"] == peak.int8_gops(1)
    assert one["scaled"]["share"] == pytest.approx(
        one["share"] * one["scaled"]["faces_per_second"] / one["faces_per_second"]
    )
    # A core that we share with others cannot give more than the same core alone.
    assert all(row["scaled"]["faces_per_second"] > 0.8 * row["faces_per_second"] for row in rows)
    assert rows[3]["faces_per_second"] < rows[2]["faces_per_second"]


def test_preprocessing_has_the_threads_of_its_artifact(tiny_files, monkeypatch):
    def seen(*_):
        blas = {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
        return {"blas": blas, "opencv": cv2.getNumThreads()}

    monkeypatch.setattr(latency, "_row", seen)
    with threadpool_limits(2, user_api="blas"):
        found = latency.with_preprocessing(
            cpu_runtimes.open_runner(tiny_files["int8"], "onnxruntime", 1), 2, [0], latency.CROP
        )
    assert found == {"blas": {1}, "opencv": 1}


def test_the_int8_peak_is_measured_once_and_plausible():
    assert peak.int8_gops(1) == peak.int8_gops(1)
    assert 1 < peak.int8_gops(1) < 20000
    assert set(peak.peaks(1, {"int8", "fp16"})) == {"fp32", "int8"}


def test_activations_of_tiny16_by_hand(tiny_files):
    found = memory.activations(tiny_files["fp32"], 16)
    # The stem's output of 16 channels at 16 x 16 and the input are alive together, at the least.
    assert found["arena_bytes"] >= 4 * (16 * 16 * 16 + 3 * 16 * 16)
    # Every feature map once: the ten convolutions' outputs at 16, 8 and 4 px.
    maps = 16 * 256 + (16 + 32 + 16 + 32) * 64 + (32 + 64 + 32 + 64) * 16 + 128 * 4
    assert found["all_bytes"] > 4 * maps
    assert found["arena_bytes"] < found["all_bytes"]


def test_a_process_grows_by_at_least_input_and_output(tiny_files):
    grown = memory.grown_bytes(tiny_files["fp32"], "onnxruntime")
    assert 4 * (3 * 256 + 128) < grown < 1e6


SUMMARY = """Scenario : {scenario}
{metric}
Result is : {result}
50.00 percentile latency (ns)   : 70000
90.00 percentile latency (ns)   : 90000
99.00 percentile latency (ns)   : 2000000
"""


def test_loadgens_summary_is_read():
    text = SUMMARY.format(scenario="SingleStream", metric="QPS w/o loadgen overhead : 9432.36", result="VALID")
    assert loadgen.parse(text) == {
        "valid": True, "faces_per_second": 9432.36, "p50_ms": 0.07, "p90_ms": 0.09, "p99_ms": 2.0,
    }  # fmt: skip
    text = SUMMARY.format(scenario="Offline", metric="Samples per second: 1.5e+04", result="INVALID")
    assert loadgen.parse(text) == {
        "valid": False, "faces_per_second": 15000, "p50_ms": None, "p90_ms": None, "p99_ms": None,
    }  # fmt: skip
    with pytest.raises(UserError, match="without a result"):
        loadgen.parse("nothing")


@pytest.mark.parametrize("scenario", loadgen.SCENARIOS)
def test_loadgen_runs_an_artifact(tiny_files, scenario):
    pytest.importorskip("mlperf_loadgen")
    found = loadgen.run(export.load(tiny_files["fp32"]), scenario, 16, 1)
    assert found["faces_per_second"] > 50
    assert found["official_length"] is False
    assert (found["p90_ms"] is None) == (scenario == "Offline")


def test_full_table_as_a_user_sees_it(tiny_files, tmp_path):
    files = [tmp_path / name for name in ("a.json", "a.md", "a.svg")]
    command = ["--full", "--artifact", str(tiny_files["fp32"]), "--runtime", "onnxruntime", "--batch", "8", "--threads",
               "1", "--no-memory", "--no-preprocessing", "--json", str(files[0]), "--markdown", str(files[1]),
               "--plot", str(files[2])]  # fmt: skip
    done = CliRunner().invoke(throughput.main, command)
    assert done.exit_code == 0, done.output
    written = json.loads(files[0].read_text())
    assert len(written["throughput"][0]["passes"]["medians"]) == 2
    assert written["machine"]["cores"] == len(machine.cores())
    text = files[1].read_text()
    assert written["noise"]["text"] in text
    assert "| 934 |" in text
    assert machine.sentence(written["machine"]) in text
    assert "tiny16.onnx" in done.stdout
    assert "<svg" in files[2].read_text()


def test_the_papers_row_stands_beside_ours():
    rows = [_row(2000.0, 1.0), _row(9340.0, 1.0, batch=256), _row(700.0, 1.0, input_px=32)]
    found = speed_table.against_paper(rows).splitlines()
    assert found[2].startswith("| s | 16 | - | 9,340 | onnxruntime fp32, batch 256 | 10.0% | 934 | 10 |")
    assert "| 335 | 2 |" in found[3]


def test_two_students_of_one_size_are_two_rows_and_two_lines(tmp_path):
    rows = [
        _row(rate, 1.0, artifact=f"{name}-int8.tflite", batch=batch)
        for name, rate in (("tiny16", 9000.0), ("small16", 2000.0)) for batch in (1, 32)
    ]  # fmt: skip
    memory = [{"artifact": f"{name}.onnx", "input_px": 16, "all_bytes": size, "arena_bytes": size}
              for name, size in (("small16", 7000), ("tiny16", 5000))]  # fmt: skip
    small, tiny = speed_table.against_paper(rows, memory).splitlines()[2:4]
    assert small.startswith("| small16 | 16 | 2,000 | 2,000 |")
    assert small.endswith("| 7 / 7 |")
    assert tiny.startswith("| tiny16 | 16 | 9,000 | 9,000 |")
    assert tiny.endswith("| 5 / 5 |")
    plots.speed(rows, tmp_path / "speed.svg")
    text = (tmp_path / "speed.svg").read_text()
    assert "small16, onnxruntime fp32" in text
    assert "tiny16, onnxruntime fp32" in text


def test_precision_filters_files(tiny_files):
    done = CliRunner().invoke(throughput.main, ["--artifact", str(tiny_files["fp32"]), "--precision", "int8"])
    assert done.exit_code == 2
    assert "none of the files is int8" in done.stderr
