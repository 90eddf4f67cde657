"""RTX engines are built for real. What a GPU or the wheel of TensorRT would do stands in at the boundary: the driver,
the runtime, torch's streams, and a module that has nothing but the names that the bindings of TensorRT 10.16 and 11.4
share, the building behind it being TensorRT-RTX's."""

import contextlib
import ctypes
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from export import engines, sidecar
from export.engines import EngineRunner
from export.onnx import export_onnx
from export.sidecar import Alpha, Crop, Input, Parity, Sidecar
from export.tensorrt import build_engine, has_gpu, trtexec_line
from faces.errors import UserError

rtx = pytest.importorskip("tensorrt_rtx")
RECORD = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
NAMES = {kind: set(names) for kind, names in RECORD["names"].items()}
VERSIONS = RECORD["strongly_typed"]


@pytest.fixture(scope="module")
def student_onnx(tmp_path_factory, student):
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    export_onnx(student("tiny16"), path, 16)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory, student_onnx):
    path = tmp_path_factory.mktemp("engine") / "student-fp32.tensorrt-rtx.engine"
    return path, build_engine(student_onnx, path, "tensorrt_rtx", (2, 4, 8), ["SM80", "SM89"])


def _contract(path, engine, **change):
    content = path.read_bytes()
    fields = {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "format": engine.backend.replace("_", "-"),
        "precision": "fp32",
        "opset": None,
        "model": "tiny16",
        "parameters": 1,
        "macs": 1,
        "input": Input(name="face", shape=(None, 3, 16, 16), layout="NCHW"),
        "crop": Crop(template="arcface", template_px=112, resampling="", points=()),
        "output": "embedding",
        "embedding_dim": 128,
        "metric": "cosine",
        "thresholds": {},
        "parity": Parity(max_abs=None, cosine_min=None, faces=0, passed=None, reason="no GPU"),
        "parity_failure_allowed": False,
        "engine": engine,
        "teacher": None,
        "data": None,
        "versions": {},
    }
    return Sidecar(**(fields | change))


def _graph(path, *nodes, x=(TensorProto.FLOAT, ("N", 3, 16, 16)), y=(TensorProto.FLOAT, ("N", 3, 16, 16))):
    ends = [helper.make_tensor_value_info(name, *kind) for name, kind in (("x", x), ("y", y))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _relu():
    return helper.make_node("Relu", ["x"], ["y"])


# Building


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
    contract = _contract(path, engine.model_copy(update={"backend": backend}))
    for call in (
        lambda: build_engine(student_onnx, tmp_path / "e", backend),
        lambda: EngineRunner(path, contract),
    ):
        with pytest.raises(UserError, match=rf"is not installed .*pip install 'bridgeface\[{extra}\]'"):
            call()


def test_the_command_for_trtexec():
    shape, batch = (None, 3, 16, 16), (1, 32, 256)
    assert trtexec_line("out/student.onnx", "face", shape, batch, "fp32") == (
        "trtexec --onnx=out/student.onnx --saveEngine=out/student-fp32.tensorrt.engine --stronglyTyped "
        "--minShapes=face:1x3x16x16 --optShapes=face:32x3x16x16 --maxShapes=face:256x3x16x16"
    )
    line = trtexec_line("my student-int8-tensorrt.onnx", "face", (1, 16, 16, 3), batch, "int8")
    assert line == (
        "trtexec '--onnx=my student-int8-tensorrt.onnx' '--saveEngine=my student-int8.tensorrt.engine' --stronglyTyped"
    )


# TensorRT, its names alone


class Named:
    """An object of TensorRT-RTX of which only TensorRT's names can be reached."""

    def __init__(self, real, kind):
        self.__dict__.update(_real=real, _kind=kind)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        assert name in NAMES[self._kind], f"TensorRT has no {self._kind}.{name}"
        value = getattr(self._real, name)
        if type(value).__name__ in ("builtin_function_or_method", "method"):
            return lambda *given: _named(value(*(one._real if isinstance(one, Named) else one for one in given)))
        return value

    def __setattr__(self, name, value):
        assert name in NAMES[self._kind], f"TensorRT has no {self._kind}.{name}"
        setattr(self._real, name, value)


def _named(value):
    kind = type(value).__name__
    # The plan is passed as it is: it is read through the buffer protocol.
    return Named(value, kind) if kind in NAMES and kind not in ("IHostMemory", "DataType") else value


class TensorRT:
    """The module; `flags` are those that networks were created with."""

    __name__ = "tensorrt"

    def __init__(self, version, runtime=None):
        self.__version__, self._runtime, self.flags = version, runtime, []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        assert name in NAMES["module"], f"TensorRT has no {name}"
        if name == "Runtime":
            return self._runtime
        if name in ("Builder", "OnnxParser"):
            return lambda *given: self._make(name, given)
        if name == "NetworkDefinitionCreationFlag":
            return type(name, (), {"STRONGLY_TYPED": VERSIONS[self.__version__]})
        return getattr(rtx, name)

    def _make(self, name, given):
        made = Named(getattr(rtx, name)(*(one._real if isinstance(one, Named) else one for one in given)), name)
        if name == "Builder":
            made.__dict__["create_network"] = lambda flags: self._network(made._real, flags)
        return made

    def _network(self, builder, flags):
        self.flags.append(flags)
        strongly = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return _named(builder.create_network(strongly))


class Driver:
    """CUDA's, with one GPU."""

    def __init__(self, major, minor):
        self._attributes = {75: major, 76: minor}

    def cuDeviceGet(self, device, ordinal):
        assert ordinal == 0
        device._obj.value = 3
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        assert device.value == 3
        value._obj.value = self._attributes[attribute]
        return 0


@pytest.fixture
def gpu(monkeypatch):
    def put(capability):
        found = None if capability is None else Driver(int(capability[2:-1]), int(capability[-1]))
        monkeypatch.setattr(engines, "driver", lambda: found)

    return put


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


# Running


@pytest.mark.parametrize("answer", [0, 100, OSError("no libcuda.so.1"), AttributeError("cuInit")])
def test_a_gpu_is_there_only_where_the_driver_starts(monkeypatch, answer):
    class Library:
        def cuInit(self, flags):
            if isinstance(answer, AttributeError):
                raise answer
            return answer

    def load(name):
        assert name == "libcuda.so.1"
        if isinstance(answer, OSError):
            raise answer
        return Library()

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert has_gpu() is (answer == 0)


def test_without_a_gpu_the_process_lives_on(tmp_path, built):
    path, engine = built
    contract = tmp_path / "contract.json"
    contract.write_text(_contract(path, engine).model_dump_json())
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from export.engines import EngineRunner\n"
        "from export.sidecar import Sidecar\n"
        "from faces.errors import UserError\n"
        f"contract = Sidecar.model_validate_json(Path({str(contract)!r}).read_text())\n"
        "try:\n"
        f"    EngineRunner(Path({str(path)!r}), contract)\n"
        "except UserError as problem:\n"
        "    print(problem)\n"
        "    sys.exit(2 if 'torch' not in sys.modules else 3)\n"
    )
    # No GPU for CUDA, even where there is one.
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert "it was not run: no NVIDIA driver or no GPU here; run it on a machine with one of SM80, SM89" in done.stdout


class Spy:
    """TensorRT-RTX whose runtime must not be touched."""

    __version__ = rtx.__version__


def test_each_reason_not_to_run_has_its_sentence(monkeypatch, tmp_path, built, gpu):
    path, engine = built
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", Spy)
    contract = _contract(path, engine)
    # From the last reason to the first: each one comes before all those above it.
    gpu("SM89")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"needs torch with CUDA, and torch .* sees none: install a CUDA build"):
        EngineRunner(path, contract)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs torch with CUDA \(.*\): pip install torch"):
        EngineRunner(path, contract)
    gpu("SM86")
    with pytest.raises(
        UserError, match=r"built for SM80, SM89, this GPU is SM86: .* student\.onnx .*--capability SM86\)"
    ):
        EngineRunner(path, contract)
    gpu(None)
    with pytest.raises(UserError, match=r"it was not run: no NVIDIA driver.*or run student\.onnx, which needs none"):
        EngineRunner(path, contract)
    short = tmp_path / "short.engine"
    short.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"short\.engine is cut short or damaged"):
        EngineRunner(short, contract)
    old = _contract(path, engine.model_copy(update={"version": "1.6.1.120"}))
    with pytest.raises(
        UserError, match=r"built by TensorRT-RTX 1\.6\.1\.120, installed is 1\.7.*--format tensorrt-rtx"
    ):
        EngineRunner(short, old)
    with pytest.raises(UserError, match=r"its sidecar names no engine"):
        EngineRunner(path, contract.model_copy(update={"engine": None}))


@pytest.mark.parametrize("size", [0, 3, 23, 24, 5000, -1])
def test_a_cut_engine_is_found_by_its_header(tmp_path, built, size):
    cut = tmp_path / "cut.engine"
    cut.write_bytes(built[0].read_bytes()[:size])
    with pytest.raises(UserError, match=r"cut\.engine is (cut short or damaged|not a TensorRT-RTX engine)"):
        engines.check_header(cut)


def test_another_file_and_a_longer_one_are_no_engine(tmp_path, student_onnx, built):
    with pytest.raises(UserError, match=r"student\.onnx is not a TensorRT-RTX engine"):
        engines.check_header(student_onnx)
    longer = tmp_path / "longer.engine"
    longer.write_bytes(built[0].read_bytes() + b"\n")
    with pytest.raises(UserError, match=r"longer\.engine is cut short or damaged: \d+ bytes, its header names \d+"):
        engines.check_header(longer)


def _only_recorded(fake, kind):
    names = {name for name in dir(fake) if not name.startswith("_")}
    assert names <= NAMES[kind], names - NAMES[kind]
    return fake


@pytest.fixture
def machine(monkeypatch, student_onnx, gpu):
    """A GPU of SM89 that runs the ONNX file in place of the engine, on the bare addresses it is given and not before
    the stream is waited for."""
    session = onnxruntime.InferenceSession(str(student_onnx), providers=["CPUExecutionProvider"])
    pending = []

    class Stream:
        cuda_stream = 7

        def __init__(self, device):
            assert device == engines._DEVICE

        def synchronize(self):
            while pending:
                pending.pop()()

    class Context:
        def __init__(self):
            self._shapes, self._addresses = {}, {}

        def set_input_shape(self, name, shape):
            assert isinstance(shape, tuple)
            self._shapes[name] = shape
            return answers["takes"] and name == "face" and shape[1:] == (3, 16, 16) and 2 <= shape[0] <= 8

        def set_tensor_address(self, name, address):
            self._addresses[name] = address
            return name in ("face", "embedding")

        def execute_async_v3(self, stream):
            assert stream == Stream.cuda_stream
            if not answers["executes"]:
                engines.log_of(module[0]).log(rtx.ILogger.ERROR, "out of memory")
                return False
            shape = self._shapes["face"]

            def at(name, count):
                return (ctypes.c_float * count).from_address(self._addresses[name])

            def work():
                fed = np.ctypeslib.as_array(at("face", int(np.prod(shape)))).reshape(shape)
                np.ctypeslib.as_array(at("embedding", shape[0] * 128))[:] = session.run(None, {"face": fed})[0].ravel()

            pending.append(work)
            return True

    class Engine:
        num_io_tensors = 2

        def get_tensor_name(self, index):
            return ("face", "embedding")[index]

        def get_tensor_mode(self, name):
            return rtx.TensorIOMode.INPUT if name == "face" else rtx.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return rtx.DataType.FLOAT

        def get_tensor_shape(self, name):
            return (-1, 3, 16, 16) if name == "face" else (-1, 128)

        def create_execution_context(self):
            return _only_recorded(Context(), "IExecutionContext")

    class Runtime:
        def __init__(self, log):
            self._log = log

        def deserialize_cuda_engine(self, content):
            if answers["content"] is None or content != answers["content"]:
                self._log.log(rtx.ILogger.ERROR, "magic tag does not match")
                return None
            return _only_recorded(Engine(), "ICudaEngine")

    answers, module = {"content": None, "executes": True, "takes": True}, []

    def start(backend, content):
        answers["content"] = content
        gpu("SM89")
        monkeypatch.setattr(engines, "_DEVICE", "cpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        if backend == "tensorrt":
            monkeypatch.setitem(sys.modules, "tensorrt", TensorRT("11.4.0.106", Runtime))
        else:
            monkeypatch.setattr(rtx, "Runtime", Runtime)
        module.append(sys.modules[backend])
        return answers

    return start


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_runs_what_the_model_gives(machine, student, noise, embed, tmp_path, student_onnx, built, backend):
    path, engine = built
    machine(backend, path.read_bytes())
    if backend == "tensorrt":
        # Made by the stand-in, which builds RTX engines.
        engine = build_engine(student_onnx, tmp_path / "engine", backend, (2, 4, 8))
        path = tmp_path / "engine"
        machine(backend, path.read_bytes())
    runner = EngineRunner(path, _contract(path, engine))
    assert runner.name == f"{backend} {engine.version}"
    for count in (2, 8, 3):
        images = noise(count, 16)
        batch = np.ascontiguousarray((images / np.float32(255)).astype(np.float32).transpose(0, 3, 1, 2))
        found = runner.run(batch)
        assert (found.dtype, found.shape) == (np.float32, (count, 128))
        assert abs(found - embed(student("tiny16"), images)).max() < 1e-5
        # A view that is not in C order is the same batch.
        assert np.array_equal(runner.run(np.asfortranarray(batch)), found)


def test_a_batch_that_does_not_fit_never_reaches_the_gpu(machine, built):
    path, engine = built
    answers = machine("tensorrt_rtx", path.read_bytes())
    runner = EngineRunner(path, _contract(path, engine))
    for count in (0, 1, 9):
        with pytest.raises(UserError, match=rf"takes 2 to 8 faces at once, got {count}: .*--batch MIN,OPT,MAX\)"):
            runner.run(np.zeros((count, 3, 16, 16), np.float32))
    for batch in (
        np.zeros((4, 3, 16, 16), np.float64),
        np.zeros((4, 3, 16, 16), np.uint8),
        np.zeros((4, 3, 16, 15), np.float32),
        np.zeros((4, 16, 16, 3), np.float32),
    ):
        with pytest.raises(UserError, match=r"it takes .*float32.*\(4, 3, 16, 16\).* for face, got"):
            runner.run(batch)
    with pytest.raises(UserError, match=r"for face, got"):
        runner.run(np.zeros((4, 3, 16, 16), np.float32), np.zeros(4, np.float32))
    answers["executes"] = False
    with pytest.raises(UserError, match=r"the GPU did not run 4 faces: out of memory"):
        runner.run(np.zeros((4, 3, 16, 16), np.float32))
    answers |= {"executes": True, "takes": False}
    with pytest.raises(UserError, match=r"the GPU did not run 4 faces: it gave no reason"):
        runner.run(np.zeros((4, 3, 16, 16), np.float32))


def test_a_sidecar_of_other_tensors_is_refused(machine, built):
    path, engine = built
    machine("tensorrt_rtx", path.read_bytes())
    alpha = Alpha(policy="input", value=None, input="alpha", source="", price=())
    for change in (
        {"embedding_dim": 256},
        {"output": "vector"},
        {"alpha": alpha},
        {"input": Input(name="face", shape=(None, 3, 32, 32), layout="NCHW")},
        {"input": Input(name="face", shape=(None, 3, 16, 16), layout="NCHW", dtype="uint8")},
    ):
        with pytest.raises(UserError, match=r"its inputs and outputs are .*, its sidecar names .*; export it again"):
            EngineRunner(path, _contract(path, engine, **change))


def test_what_the_runtime_refuses_is_told_with_its_words(machine, built):
    path, engine = built
    machine("tensorrt_rtx", None)
    with pytest.raises(UserError, match=r"TensorRT-RTX does not load it: magic tag does not match; build it again"):
        EngineRunner(path, _contract(path, engine))


def test_the_engine_in_its_sidecar_survives_the_file(tmp_path, built):
    path, engine = built
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    sidecar.write(copy, _contract(copy, engine))
    assert sidecar.read(copy).engine == engine
