"""Hostile model files without a sidecar, each opened by `probe`: one line for each, no crash, bounded memory."""

import json
import random
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.child import HEADROOM, probe
from export.onnx import export_onnx
from faces.errors import UserError
from students import create_student

# A small process of its own: the peak memory of a child counts from its parent's, and pytest has torch in it.
_PROBE_ALL = """
import json, pathlib, resource, sys, time
from export.child import probe
from faces.errors import UserError
unit = 1 if sys.platform == "darwin" else 1024
for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    if file.suffix not in (".onnx", ".tflite"):
        continue
    start = time.monotonic()
    try:
        told = None if probe(file, timeout=30) else None
    except UserError as mistake:
        told = str(mistake)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    print(json.dumps([file.name, told, time.monotonic() - start, peak]), flush=True)
"""
_RUNTIME = 300 * 2**20
"""What a Python process with a runtime takes, with room."""


def _told(folder):
    done = subprocess.run([sys.executable, "-c", _PROBE_ALL, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("good") / "s.onnx"
    export_onnx(create_student("tiny16"), file, 16)
    return file


def _model(nodes, weights=(), type=TensorProto.FLOAT, shape=("n", 4)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", type, list(shape))],
        [helper.make_tensor_value_info("y", type, None)],
        [numpy_helper.from_array(np.array(value), name) for name, value in dict(weights).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _external(good, location):
    proto = onnx.load(str(good))
    weight = max(proto.graph.initializer, key=lambda w: len(w.raw_data))
    kept = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return proto, kept


def test_files_that_are_no_models_are_refused_quickly(good, tmp_path):
    data = good.read_bytes()
    start = b"\x08\x0a"  # ir_version 10
    hostile = {
        "empty.onnx": b"",
        "empty.tflite": b"",
        "text.onnx": b"this is no model\n" * 50,
        "text.tflite": b"this is no model\n" * 50,
        "noise.onnx": random.Random(0).randbytes(4096),
        "zeros.onnx": bytes(10_000),
        "frame.onnx": start,
        # Lengths that the file does not have: in the header, and in a tensor.
        "claim.onnx": start + b"\x3a" + _varint(2**31 - 1) + b"abc",
        "long.onnx": start + b"\x3a" + _varint(2**31) + b"abc",
        "longest.onnx": start + b"\x3a" + _varint(2**63) + b"abc",
        "endless.onnx": start + b"\x3a" + b"\xff" * 2000,
        "opset.onnx": start + b"\x42" + _varint(2**31),
        "tensor.onnx": start + b"\x3a\x09\x2a" + b"\x07\x4a" + _varint(2**31 - 1),
        "claim.tflite": (2**31 - 1).to_bytes(4, "little") + b"TFL3" + bytes(64),
        "claim32.tflite": (2**32 - 1).to_bytes(4, "little") + b"TFL3" + bytes(64),
        "vector.tflite": (16).to_bytes(4, "little") + b"TFL3" + b"\xff\xff\xff\x7f" * 40,
        "frame.tflite": b"\x00\x00\x00\x00TFL3",
        "other.tflite": data,
        # Half a million empty graphs, and graphs in graphs: nothing may pile up.
        "graphs.onnx": start + b"\x3a\x00" * 500_000,
    } | {f"cut{size}.onnx": data[:size] for size in (1, 8, 100, len(data) // 2, len(data) - 1)}
    nested = b""
    for _ in range(3000):
        inner = b"\x32" + _varint(len(nested)) + nested  # attribute.g
        node = b"\x2a" + _varint(len(inner)) + inner  # node.attribute
        nested = b"\x0a" + _varint(len(node)) + node  # graph.node
    hostile["deep.onnx"] = start + b"\x3a" + _varint(len(nested)) + nested
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
    told = _told(tmp_path)
    assert set(told) == set(hostile)
    for name, (message, seconds, peak) in told.items():
        assert message is not None, name
        assert f"{name}: not a usable {name.split('.')[1]} file: " in message
        assert "\n" not in message
        assert len(message) < 600
        # Of these none may as much as start to fill its memory; the time is mostly Python's start.
        assert peak < 2 * _RUNTIME, (name, peak)
        assert seconds < 20, (name, seconds)
    assert "names 2,147,483,647 bytes" in told["claim.onnx"][0]
    assert "points to byte 2,147,483,647" in told["claim.tflite"][0]
    assert "nested more than 50" in told["deep.onnx"][0]


def test_models_that_ask_for_much_memory_are_contained(tmp_path):
    one = helper.make_node("ReduceSum", ["b"], ["r"], keepdims=0), helper.make_node("Add", ["x", "r"], ["y"])
    hostile = {
        # Folded when the file is opened, by onnxruntime's optimiser.
        "folded": _model([helper.make_node("ConstantOfShape", ["s"], ["b"]), *one], {"s": [2**33]}),
        # The size hangs on the input, so nothing is folded.
        "run": _model(
            [
                helper.make_node("Shape", ["x"], ["q"]),
                helper.make_node("Mul", ["q", "s"], ["t"]),
                helper.make_node("ConstantOfShape", ["t"], ["b"]),
                *one,
            ],
            {"s": [2**20, 2**11]},
        ),
        "wrapped": _model([helper.make_node("ConstantOfShape", ["s"], ["b"]), *one], {"s": [2**33, 2**33]}),
        "negative": _model([helper.make_node("ConstantOfShape", ["s"], ["b"]), *one], {"s": [-5]}),
        # Each is below the limit, all together are not: 40 x 256 MiB that stay alive.
        "many": _model(
            [helper.make_node("Expand", ["x", "s"], [f"e{i}"]) for i in range(40)]
            + [helper.make_node("Concat", [f"e{i}" for i in range(40)], ["y"], axis=0)],
            {"s": [2**24, 4]},
        ),
        "input": _model([helper.make_node("Identity", ["x"], ["y"])], shape=(2**20, 2**15)),
        "wide": _model([helper.make_node("Identity", ["x"], ["y"])], shape=(2**40, 2**40)),
    }
    for name, proto in hostile.items():
        (tmp_path / f"{name}.onnx").write_bytes(proto.SerializeToString())
    told = _told(tmp_path)
    for name in hostile:
        message, seconds, peak = told[f"{name}.onnx"]
        assert message is not None, name
        assert peak < HEADROOM + _RUNTIME, (name, peak)
        assert seconds < 30, (name, seconds)
        assert "\n" not in message
    for name in ("folded", "run", "many", "input"):
        assert "asks for more than 1024 MiB of memory" in told[f"{name}.onnx"][0], told


def test_a_model_that_never_ends_is_ended(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["m", "k", "x"], ["y"], body=body)
    file = tmp_path / "loop.onnx"
    file.write_bytes(_model([loop], {"m": 2**60, "k": True}).SerializeToString())
    start = time.monotonic()
    with pytest.raises(UserError, match=r"loop\.onnx: not a usable onnx file: it took more than 3 s to open"):
        probe(file, timeout=3)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "/proc/self/mem", "a/../../secret", "link", "..\\x"])
def test_weights_outside_the_folder_are_refused(good, tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(10**6))
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "s.onnx").write_bytes(_external(good, location)[0].SerializeToString())
    with pytest.raises(UserError, match=r"s\.onnx: not a usable onnx file: it reads weights from .*escapes model dir"):
        probe(folder / "s.onnx")


def test_weights_outside_are_found_in_nested_graphs_and_functions(tmp_path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])])
    condition = helper.make_node("If", ["k"], ["y"], then_branch=branch, else_branch=branch)
    nested = _model([condition], {"k": True})
    function = helper.make_function(
        "own", "F", ["x"], ["y"], [constant, helper.make_node("Add", ["x", "w"], ["y"])], [helper.make_opsetid("", 20)]
    )
    called = _model([helper.make_node("F", ["x"], ["y"], domain="own")])
    called.functions.append(function)
    called.opset_import.append(helper.make_opsetid("own", 1))
    for proto in (nested, called):
        (tmp_path / "s.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(UserError, match=r"reads weights from '\.\./secret'"):
            probe(tmp_path / "s.onnx")


def test_weights_beside_the_file_are_read(good, tmp_path):
    proto, kept = _external(good, "weights.bin")
    (tmp_path / "s.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=r"reads weights from 'weights\.bin', which is no file"):
        probe(tmp_path / "s.onnx")
    (tmp_path / "weights.bin").write_bytes(kept)
    assert probe(tmp_path / "s.onnx") == probe(good)
    # Fewer bytes than the tensor has.
    (tmp_path / "weights.bin").write_bytes(kept[:100])
    with pytest.raises(UserError, match=r"s\.onnx: not a usable onnx file"):
        probe(tmp_path / "s.onnx")


def test_another_input_is_told_and_not_refused(tmp_path):
    file = tmp_path / "s.onnx"
    for type, dtype in ((TensorProto.INT64, "int64"), (TensorProto.DOUBLE, "float64"), (TensorProto.BOOL, "bool")):
        file.write_bytes(_model([helper.make_node("Identity", ["x"], ["y"])], type=type).SerializeToString())
        assert probe(file).inputs == (("x", dtype, (None, 4)),)
    file.write_bytes(_model([helper.make_node("Identity", ["x"], ["y"])], type=TensorProto.STRING).SerializeToString())
    with pytest.raises(UserError, match=r"s\.onnx: not a usable onnx file"):
        probe(file)


def test_names_that_are_no_names(tmp_path):
    file = tmp_path / "s.onnx"
    for name in ('"}\n{"problem": "', "n" * 2_000_000, "\x00\x1b[31m"):
        graph = helper.make_graph(
            [helper.make_node("Identity", [name], ["y"])], "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        file.write_bytes(proto.SerializeToString())
        found = None
        try:
            found = probe(file)
        except UserError as mistake:
            said = str(mistake)
        if found is not None:
            assert found.inputs[0].name == name
        else:
            assert "s.onnx: not a usable onnx file" in said
            assert len(said) < 1000


@pytest.mark.slow
def test_random_damage_never_gets_through(good, tmp_path):
    rng, data = random.Random(1), good.read_bytes()
    for seed in range(100):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 3, 20))):
            changed[rng.randrange(8, len(data))] = rng.randrange(256)
        (tmp_path / f"f{seed:03}.onnx").write_bytes(changed)
    assert len(_told(tmp_path)) == 100
