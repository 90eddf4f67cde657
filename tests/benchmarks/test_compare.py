import json
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import export
from benchmarks import __main__ as overview
from benchmarks import compare, memory, operators
from benchmarks.students import artifacts_of

ROW = {
    "artifact": "s.onnx", "runtime": "onnxruntime 1.0", "device": "cpu", "threads": 1, "batch": 32,
    "precision": "fp32", "input_px": 16, "preprocessing": False, "faces_per_second": 1000.0, "iqr": 30.0,
}  # fmt: skip


def _files(tmp_path, old, new):
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, rows in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps({"throughput": rows}))
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    ("rate", "iqr", "verdict", "code"),
    [(1059, 30.0, "1 within noise", 0), (1061, 30.0, "1 faster", 0), (939, 30.0, "1 slower", 1),
     (939, [900, 940], "1 within noise", 0)],
)  # fmt: skip
def test_rows_that_moved_beyond_their_noise(tmp_path, rate, iqr, verdict, code):
    new = ROW | {"faces_per_second": rate, "iqr": iqr, "runtime": "onnxruntime 2.0"}
    done = CliRunner().invoke(compare.main, _files(tmp_path, [ROW], [new]))
    assert done.exit_code == code
    assert done.stdout.splitlines()[-1] == verdict


def test_rows_of_one_file_alone_are_told(tmp_path):
    done = CliRunner().invoke(compare.main, _files(tmp_path, [ROW], [ROW | {"batch": 1}]))
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "gone  s.onnx onnxruntime fp32, cpu, 1 thread(s), batch 32",
        "new  s.onnx onnxruntime fp32, cpu, 1 thread(s), batch 1",
        "1 gone, 1 new",
    ]


def test_two_rows_of_one_name_are_told(tmp_path):
    done = CliRunner().invoke(compare.main, _files(tmp_path, [ROW], [ROW, ROW | {"faces_per_second": 7.0}]))
    assert done.exit_code == 2
    assert "two rows are called s.onnx onnxruntime fp32, cpu, 1 thread(s), batch 32: rename one" in done.stderr


WITHOUT_RATE = json.dumps({"throughput": [{name: value for name, value in ROW.items() if name != "iqr"}]})


ODD = [{"faces_per_second": None}, {"faces_per_second": 0}, {"faces_per_second": float("nan")}, {"runtime": " "},
       {"iqr": "x"}, {"iqr": []}, {"artifact": ["a"]}]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["no json", "[" * 100_000, "[]", "{}", '{"throughput": [{"batch": 1}]}', WITHOUT_RATE]
    + [json.dumps({"throughput": [ROW | odd]}) for odd in ODD],
)
def test_a_file_without_rows_is_told_in_one_line(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    done = CliRunner().invoke(compare.main, [str(file), str(file)])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_no_file_that_is_kept_is_called_damaged():
    done = CliRunner().invoke(overview.main, [])
    assert done.exit_code == 0
    assert done.stdout.count("kept in") > 5
    assert "damaged" not in done.stdout


@pytest.mark.parametrize("text", ["[]", "{", '{"throughput": [7]}'])
def test_overview_says_that_a_kept_file_is_damaged(tmp_path, text):
    (tmp_path / "throughput.json").write_text(text)
    done = CliRunner().invoke(overview.main, ["--results", str(tmp_path)])
    assert done.exit_code == 0
    assert f"{tmp_path / 'throughput.json'}: damaged" in done.stdout


def test_overview_names_commands_and_what_is_kept(tmp_path):
    (tmp_path / "throughput.json").write_text(json.dumps({"throughput": [ROW, ROW | {"faces_per_second": 7.0}]}))
    done = CliRunner().invoke(overview.main, ["--results", str(tmp_path)])
    assert done.exit_code == 0
    assert "2 rows, at best 1,000 faces/s (s.onnx, onnxruntime 1.0, batch 32)" in done.stdout
    assert "python -m benchmarks gpu" in done.stdout
    assert "compare" in CliRunner().invoke(overview.main, ["--help"]).stdout


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_operators_of_tiny16(tiny_files, runtime):
    pytest.importorskip(runtime)
    macs = operators.conv_macs(tiny_files["fp32"])
    # Ten convolutions and three layers, together what the whole network counts.
    assert len(macs) == 13
    assert sum(macs.values()) == 1_470_464
    assert sum(operators.conv_macs(tiny_files["int8"]).values()) == 1_470_464
    rows = operators.by_operator(tiny_files["fp32"], runtime, 8)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows == sorted(rows, key=lambda row: -row["micros"])
    # Most products keep their names through fusion, and each is counted once.
    named = [row["macs"] for row in rows if row["macs"]]
    assert 0.8 * 1_470_464 <= sum(named) <= 1_470_464


def test_weights_among_the_inputs_are_no_inputs(tiny_files, tmp_path):
    """As files of IR version 3 have them."""
    model = onnx.load(str(tiny_files["fp32"]))
    for one in model.graph.initializer:
        # A scalar has no first side that could be a batch.
        model.graph.input.append(onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    onnx.save(model, str(tmp_path / "listed.onnx"))
    for file in (tiny_files["fp32"], tmp_path / "listed.onnx"):
        assert sum(operators.conv_macs(file).values()) == 1_470_464
        assert memory.activations(file, 16) == memory.activations(tiny_files["fp32"], 16)


def test_what_bounds_it_by_hand():
    rows = [
        {"operator": "conv", "macs": 1_000_000, "micros": 100.0},
        {"operator": "stem", "macs": 100_000, "micros": 100.0},
        {"operator": "pool", "macs": None, "micros": 50.0},
    ]
    found = operators.bound(rows, 1, 110.0)
    assert found["products_share"] == pytest.approx(0.8)
    assert found["products_gops"] == pytest.approx(11.0)
    assert found["products_of_peak"] == pytest.approx(0.1)
    assert "stem run below half" in found["text"]


@pytest.mark.parametrize("name", ["tflite", "tflite-int8"])
def test_operators_of_a_tflite_file(tiny_files, name):
    pytest.importorskip("ai_edge_litert")
    rows = operators.by_operator(tiny_files[name], "litert", 4)
    assert sum(row["macs"] or 0 for row in rows) == 1_470_464
    assert sum(row["kind"] == "CONV_2D" for row in rows) == 10
    assert sum(row["kind"] == "MAX_POOL_2D" for row in rows) == 3
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows[0]["micros"] > 0
    assert 0 < operators.bound(rows, 4, 110.0)["products_share"] <= 1


def test_a_kernel_a_channel_is_counted_too():
    pytest.importorskip("ai_edge_litert")
    with artifacts_of("small16", ("fp32",)) as (in_onnx, in_tflite):
        assert sum(operators.conv_macs(in_onnx).values()) == 8_309_760
        rows = operators.by_operator(in_tflite, "litert", 1)
    assert sum(row["macs"] or 0 for row in rows) == 8_309_760


def test_a_missing_litert_is_named(tiny_files, monkeypatch):
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    done = CliRunner().invoke(operators.main, [str(tiny_files["tflite"])])
    assert done.exit_code == 2, (done.output, done.exception)
    assert "pip install ai-edge-litert" in done.stderr


def test_without_xnnpack_the_features_are_the_same(tiny_files, some_faces):
    plain = operators.WithoutXnnpack(tiny_files["tflite"])
    for count in (5, 2):
        wanted = export.load(tiny_files["tflite"]).embed(some_faces[:count])
        assert np.allclose(plain.run(plain.prepare(some_faces[:count])), wanted, atol=1e-4)


def test_a_profile_of_another_file_is_refused(tmp_path):
    done = CliRunner().invoke(operators.main, [str(tmp_path / "student.engine")])
    assert done.exit_code == 2
    assert "operators are timed in ONNX and TFLite files" in done.stderr
