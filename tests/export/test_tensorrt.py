"""Engines of TensorRT-RTX are built for real, those of TensorRT with a module that has its names alone."""

import hashlib
import os
import sys

import onnx
import pytest
from onnx import TensorProto, helper
from tensorrt_stand_ins import VERSIONS, TensorRT, contract_of, rtx

from export import engines
from export.engines import EngineRunner
from export.tensorrt import build_engine, trtexec_line
from faces.errors import UserError


def _graph(path, *nodes, x=(TensorProto.FLOAT, ("N", 3, 16, 16)), y=(TensorProto.FLOAT, ("N", 3, 16, 16))):
    ends = [helper.make_tensor_value_info(name, *kind) for name, kind in (("x", x), ("y", y))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _relu():
    return helper.make_node("Relu", ["x"], ["y"])


def test_one_engine_for_two_kinds_of_gpu(built, student_onnx, capfd):
    path, engine = built
    assert engine.model_dump() | {"seconds": 0} == {
        "backend": "tensorrt_rtx",
        "version": rtx.__version__,
        "targets": ("SM80", "SM89"),
        "profile": (2, 4, 8),
        "onnx": "student.onnx",
        "onnx_sha256": hashlib.sha256(student_onnx.read_bytes()).hexdigest(),
        "seconds": 0,
    }
    assert 0 < engine.seconds < 60
    # The weights are inside, and nothing but the engine is in the file.
    content = path.read_bytes()
    assert content.startswith(b"vtrt")
    assert len(content) > 4 * 100_000
    assert int.from_bytes(content[16:24], "little") == len(content)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    engines.check_header(path)
    assert capfd.readouterr() == ("", "")


def test_inputs_may_be_bytes_and_the_batch_fixed(tmp_path):
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    file = _graph(tmp_path / "bytes.onnx", cast, x=(TensorProto.UINT8, ("N", 3, 16, 16)))
    assert build_engine(file, tmp_path / "e", "tensorrt_rtx", (1, 2, 3), ["SM86"]).profile == (1, 2, 3)
    shape = (TensorProto.FLOAT, (5, 3, 16, 16))
    file = _graph(tmp_path / "fixed.onnx", _relu(), x=shape, y=shape)
    assert build_engine(file, tmp_path / "e", "tensorrt_rtx", (1, 2, 3), ["SM86"]).profile == (5, 5, 5)


def test_half_precision_inside_is_built_and_at_the_ends_refused(tmp_path):
    half, full = (TensorProto.FLOAT16, ("N", 3, 16, 16)), (TensorProto.FLOAT, ("N", 3, 16, 16))
    down = helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16)
    inside = [
        down,
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    build_engine(_graph(tmp_path / "a.onnx", *inside), tmp_path / "a", "tensorrt_rtx", capabilities=["SM89"])
    for name, nodes, x, y in (
        ("x", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], half, full),
        ("y", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], full, half),
    ):
        file = _graph(tmp_path / "b.onnx", *nodes, x=x, y=y)
        with pytest.raises(UserError, match=rf"b\.onnx: {name} is HALF.*export the ONNX file with float32 inputs"):
            build_engine(file, tmp_path / "b", "tensorrt_rtx", capabilities=["SM89"])
        assert not (tmp_path / "b").exists()


def _content(kind, student_onnx):
    return {
        "truncated": student_onnx.read_bytes()[:5000],
        "empty": b"",
        "noise": b"\x00hello" * 100,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("truncated", r"Failed to parse the ONNX model"),
        ("empty", r"not a whole ONNX file: it has 0 inputs and 0 outputs"),
        ("noise", r"not a whole ONNX file: it has 0 inputs and 0 outputs"),
    ],
)
def test_a_damaged_file_says_so_and_prints_nothing(tmp_path, student_onnx, capfd, kind, told):
    file = tmp_path / "damaged.onnx"
    file.write_bytes(_content(kind, student_onnx))
    with pytest.raises(UserError, match=rf"^damaged\.onnx.*{told}"):
        build_engine(file, tmp_path / "engine", "tensorrt_rtx")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.onnx"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("operator", "told"), [("Foo", "Foo odd_one .*Plugin not found"), ("Det", "Det odd_one UNSUPPORTED_NODE.* false$")]
)
def test_an_operator_that_is_not_known_is_named_in_the_parsers_words(tmp_path, operator, told):
    file = _graph(tmp_path / "odd.onnx", helper.make_node(operator, ["x"], ["y"], name="odd_one"))
    with pytest.raises(UserError, match=rf"odd\.onnx is not understood by TensorRT-RTX 1\.\d.*: {told}"):
        build_engine(file, tmp_path / "engine", "tensorrt_rtx")


def test_other_free_sizes_missing_files_and_odd_batches_are_refused(tmp_path):
    wide = (TensorProto.FLOAT, ("N", 3, 16, "w"))
    with pytest.raises(UserError, match=r"wide\.onnx: x is of shape \(-1, 3, 16, -1\), only the batch may be free"):
        build_engine(_graph(tmp_path / "wide.onnx", _relu(), x=wide, y=wide), tmp_path / "e", "tensorrt_rtx")
    with pytest.raises(UserError, match=r"none\.onnx cannot be read \(No such file"):
        build_engine(tmp_path / "none.onnx", tmp_path / "e", "tensorrt_rtx")
    for batch in ((0, 1, 2), (2, 1, 2), (1, 3, 2)):
        with pytest.raises(UserError, match=r"batch sizes \(.*from 1 up"):
            build_engine(tmp_path / "none.onnx", tmp_path / "e", "tensorrt_rtx", batch)


@pytest.mark.parametrize("capabilities", [["SM89", "SM90"], ["CURRENT"], ["NONE"], []])
def test_unknown_gpus_are_refused_with_those_that_the_wheel_knows(tmp_path, student_onnx, capabilities):
    with pytest.raises(UserError, match=r"compute capability.*knows: SM75, SM80, .*SM120") as told:
        build_engine(student_onnx, tmp_path / "e", "tensorrt_rtx", capabilities=capabilities)
    assert all(repr(name) in str(told.value) for name in capabilities[-1:])
    assert "CURRENT," not in str(told.value)


def test_a_gpu_that_cannot_run_the_network_is_named_even_while_another_builder_lives(tmp_path, student_onnx):
    # Which makes the library ignore a second logger.
    other = rtx.Builder(engines.log_of(rtx))
    with pytest.raises(UserError, match=r"student\.onnx cannot be built for SM75: .*FP32 GEMM is not supported"):
        build_engine(student_onnx, tmp_path / "e", "tensorrt_rtx", capabilities=["SM80", "SM75"])
    assert not (tmp_path / "e").exists()
    del other


@pytest.mark.parametrize(("backend", "extra"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")])
def test_a_missing_wheel_names_its_extra(monkeypatch, tmp_path, student_onnx, built, backend, extra):
    monkeypatch.setitem(sys.modules, backend, None)
    path, engine = built
    contract = contract_of(path, engine.model_copy(update={"backend": backend}))
    for call in (
        lambda: build_engine(student_onnx, tmp_path / "e", backend),
        lambda: EngineRunner(path, contract),
    ):
        with pytest.raises(UserError, match=rf"is not installed .*pip install 'bridgeface\[{extra}\]'"):
            call()


def test_the_command_for_trtexec():
    shape, batch = (None, 3, 16, 16), (1, 32, 256)
    assert trtexec_line("out/student.onnx", {"face": shape}, batch, "fp32") == (
        "trtexec --onnx=out/student.onnx --saveEngine=out/student-fp32.tensorrt.engine --stronglyTyped "
        "--minShapes=face:1x3x16x16 --optShapes=face:32x3x16x16 --maxShapes=face:256x3x16x16"
    )
    line = trtexec_line("teacher.onnx", {"face": shape, "alpha": (None,)}, batch, "fp32")
    assert line.endswith(
        "--minShapes=face:1x3x16x16,alpha:1 --optShapes=face:32x3x16x16,alpha:32 --maxShapes=face:256x3x16x16,alpha:256"
    )
    line = trtexec_line("my student-int8-tensorrt.onnx", {"face": (1, 16, 16, 3)}, batch, "int8")
    assert line == (
        "trtexec '--onnx=my student-int8-tensorrt.onnx' '--saveEngine=my student-int8.tensorrt.engine' --stronglyTyped"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_builder_builds_with_the_names_of_tensorrt(monkeypatch, tmp_path, student_onnx, gpu, version):
    module = TensorRT(version)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    gpu("SM120")
    engine = build_engine(student_onnx, tmp_path / "engine", "tensorrt", (1, 2, 4))
    assert (engine.backend, engine.version, engine.targets, engine.profile) == (
        "tensorrt",
        version,
        ("SM120",),
        (1, 2, 4),
    )
    # 1 << 1 in TensorRT 10, 1 << 0 in 11.
    assert module.flags == [{"10.16.1.11": 2, "11.4.0.106": 1}[version]]
    assert (tmp_path / "engine").stat().st_size > 4 * 100_000
    # Its errors come through as well.
    with pytest.raises(UserError, match=rf"odd\.onnx is not understood by TensorRT {version}: Foo .*Plugin not found"):
        build_engine(_graph(tmp_path / "odd.onnx", helper.make_node("Foo", ["x"], ["y"])), tmp_path / "odd", "tensorrt")


def test_the_stand_in_has_none_of_the_names_of_rtx():
    module = TensorRT("11.4.0.106")
    builder = module.Builder(engines.log_of(module))
    config = builder.create_builder_config()
    for act in (
        lambda: module.ComputeCapability,
        lambda: config.num_compute_capabilities,
        lambda: setattr(config, "num_compute_capabilities", 1),
        lambda: config.set_compute_capability,
        lambda: builder.platform_has_fast_fp16,
    ):
        with pytest.raises(AssertionError, match="TensorRT has no"):
            act()


def test_tensorrt_is_not_touched_without_a_gpu(monkeypatch, tmp_path, student_onnx, gpu):
    class Untouchable:
        __version__ = "11.4.0.106"

    monkeypatch.setitem(sys.modules, "tensorrt", Untouchable)
    gpu(None)
    with pytest.raises(UserError, match=r"builds on the GPU that is to run the engine.*take tensorrt-rtx"):
        build_engine(student_onnx, tmp_path / "e", "tensorrt")


def test_a_library_that_cannot_start_says_so_and_prints_nothing(monkeypatch, tmp_path, student_onnx, gpu, capfd):
    class Broken(TensorRT):
        def _make(self, name, given):
            os.write(2, b"[native] words")
            given[0].log(rtx.ILogger.ERROR, "CUDA initialization failure\nwith error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setitem(sys.modules, "tensorrt", Broken("11.4.0.106"))
    gpu("SM89")
    with pytest.raises(UserError, match=r"TensorRT 11\.4\.0\.106 does not start: CUDA initialization failure with"):
        build_engine(student_onnx, tmp_path / "e", "tensorrt")
    assert capfd.readouterr() == ("", "")
