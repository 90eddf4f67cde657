"""Loading and running an engine: real engines of TensorRT-RTX; the driver, the runtime and torch's streams stand in."""

import contextlib
import ctypes
import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from tensorrt_stand_ins import NAMES, TensorRT, contract_of, rtx

from export import engines, sidecar
from export.engines import EngineRunner
from export.sidecar import Alpha, Input
from export.tensorrt import build_engine, has_gpu
from faces.errors import UserError


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
    contract.write_text(contract_of(path, engine).model_dump_json())
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
    contract = contract_of(path, engine)
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
    old = contract_of(path, engine.model_copy(update={"version": "1.6.1.120"}))
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
    runner = EngineRunner(path, contract_of(path, engine))
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
    runner = EngineRunner(path, contract_of(path, engine))
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
            EngineRunner(path, contract_of(path, engine, **change))


def test_what_the_runtime_refuses_is_told_with_its_words(machine, built):
    path, engine = built
    machine("tensorrt_rtx", None)
    with pytest.raises(UserError, match=r"TensorRT-RTX does not load it: magic tag does not match; build it again"):
        EngineRunner(path, contract_of(path, engine))


def test_the_engine_in_its_sidecar_survives_the_file(tmp_path, built):
    path, engine = built
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    sidecar.write(copy, contract_of(copy, engine))
    assert sidecar.read(copy).engine == engine
