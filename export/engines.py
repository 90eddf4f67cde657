"""Engines of TensorRT and TensorRT-RTX: what stands between them and a crash, and the class that runs one."""

import ctypes
import functools
import importlib
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export.quiet import quiet
from export.sidecar import Engine, Sidecar
from faces.errors import UserError

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_TYPES = {"float32": "FLOAT", "uint8": "UINT8", "int8": "INT8"}
# Of the driver's interface: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR, _MINOR = 75, 76
_DEVICE = "cuda:0"


def has_gpu() -> bool:
    """Whether an NVIDIA driver and a GPU are at hand.

    Without them a TensorRT runtime may end the process instead of raising, so nothing here touches one unless
    this is true.
    """
    return driver() is not None


def cannot_run(engine: Engine) -> str | None:
    """Why the engine cannot run on this machine; None where a GPU is here that it was built for."""
    library = driver()
    if library is None:
        return "no NVIDIA GPU here"
    gpu = capability(library)
    return None if gpu in engine.targets else f"the GPU here is {gpu}, it is for {', '.join(engine.targets)}"


class EngineRunner:
    """An engine on the first GPU, through torch's CUDA tensors. Not for several threads at once."""

    def __init__(self, path: Path, contract: Sidecar) -> None:
        """Raises UserError where the backend is missing or not of the version that built the engine, the file is
        damaged, there is no GPU or not one it was built for, torch has no CUDA, or the runtime refuses the file."""
        if contract.engine is None:
            raise UserError("its sidecar names no engine; export it again")
        self._built = built = contract.engine
        trt = backend_module(built.backend)
        title = TITLES[built.backend]
        if trt.__version__ != built.version:
            raise UserError(
                f"built by {title} {built.version}, installed is {trt.__version__}, and engines run with their own "
                f"version only: {_rebuild(built)}, or install version {built.version}"
            )
        if built.backend == "tensorrt_rtx":
            check_header(path)
        library = driver()
        if library is None:
            raise UserError(
                f"it was not run: no NVIDIA driver or no GPU here; run it on a machine with one of "
                f"{', '.join(built.targets)}, or run {built.onnx}, which needs none"
            )
        gpu = capability(library)
        if gpu not in built.targets:
            # TensorRT builds for the GPU it is on, so there the command needs no name.
            option = f"--capability {gpu}" if built.backend == "tensorrt_rtx" else ""
            raise UserError(f"built for {', '.join(built.targets)}, this GPU is {gpu}: {_rebuild(built, option)}")
        self._torch = _torch()
        self.name = f"{built.backend} {trt.__version__}"
        self._log = log_of(trt)
        self._log.kept.clear()
        self._stream = self._torch.cuda.Stream(device=_DEVICE)
        # Inside the stream its GPU is the current one, which is where the runtime puts the engine.
        with quiet(), self._torch.cuda.stream(self._stream):
            # Kept, as an engine must not outlive its runtime.
            self._runtime = made(trt.Runtime, self._log)
            engine = None if self._runtime is None else self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
            self._context: Any = None if engine is None else engine.create_execution_context()
        if self._context is None:
            raise UserError(f"{title} does not load it: {reason(self._log)}; {_rebuild(built)}")
        self._engine: Any = engine
        self._fed: dict[str, tuple[str, tuple[int, ...]]] = {
            contract.input.name: (contract.input.dtype, contract.input.shape[1:])
        }
        if contract.alpha is not None and contract.alpha.input is not None:
            self._fed[contract.alpha.input] = ("float32", ())
        self._output = (contract.output, contract.embedding_dim)
        self._check_tensors(trt)

    def _check_tensors(self, trt: Any) -> None:
        # The engine reads and writes bare addresses: a wrong size would not raise but touch other memory.
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        found = {
            name: (
                self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                self._engine.get_tensor_dtype(name).name,
                tuple(self._engine.get_tensor_shape(name))[1:],
            )
            for name in names
        }
        wanted: dict[str, tuple[bool, str, tuple[int, ...]]] = {
            name: (True, _TYPES[dtype], rest) for name, (dtype, rest) in self._fed.items()
        }
        wanted[self._output[0]] = (False, "FLOAT", (self._output[1],))
        if found != wanted:
            raise UserError(f"its inputs and outputs are {found}, its sidecar names {wanted}; export it again")

    def run(self, batch: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
        """A batch in the sidecar's layout, type and range, and alphas (N,) where it takes them, to (N, D) float32.

        Raises UserError on a batch outside the engine's profile or of another shape or type, and where the GPU fails.
        """
        least, _, most = self._built.profile
        if not least <= len(batch) <= most:
            raise UserError(
                f"it takes {least} to {most} faces at once, got {len(batch)}: pass as many, or "
                f"{_rebuild(self._built, '--batch MIN,OPT,MAX')}"
            )
        given = [batch] if alpha is None else [batch, np.asarray(alpha, np.float32)]
        wanted = [(dtype, (len(batch), *rest)) for dtype, rest in self._fed.values()]
        got = [(array.dtype.name, array.shape) for array in given]
        if got != wanted:
            raise UserError(f"it takes {wanted} for {', '.join(self._fed)}, got {got}")
        self._log.kept.clear()
        torch = self._torch
        with torch.cuda.stream(self._stream):
            tensors = {
                name: torch.tensor(np.ascontiguousarray(array), device=_DEVICE)
                for name, array in zip(self._fed, given, strict=True)
            }
            ready = [self._context.set_input_shape(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
            name, width = self._output
            found = tensors[name] = torch.empty((len(batch), width), dtype=torch.float32, device=_DEVICE)
            ready += [self._context.set_tensor_address(name, tensor.data_ptr()) for name, tensor in tensors.items()]
            if not all(ready) or not self._context.execute_async_v3(self._stream.cuda_stream):
                raise UserError(f"the GPU did not run {len(batch)} faces: {reason(self._log)}")
            self._stream.synchronize()
            return found.cpu().numpy()

    def enqueue(self, batch: np.ndarray) -> tuple[Callable[[], None], Any]:
        """(a call that runs this batch, already on the GPU, without waiting for it; the CUDA stream that it runs on).

        For clocks: nothing is copied or checked in the call. UserError on a batch outside the engine's profile.
        """
        self.run(batch)
        torch, ready = self._torch, []
        with torch.cuda.stream(self._stream):
            given = torch.tensor(np.ascontiguousarray(batch), device=_DEVICE)
            found = torch.empty((len(batch), self._output[1]), dtype=torch.float32, device=_DEVICE)
            for name, tensor in ((next(iter(self._fed)), given), (self._output[0], found)):
                ready.append(self._context.set_tensor_address(name, tensor.data_ptr()))
        if not all(ready):
            raise UserError(f"the GPU did not take {len(batch)} faces: {reason(self._log)}")

        # The tensors live as long as the call does: the engine knows their addresses alone.
        def call(held: Any = (given, found)) -> None:
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise UserError(f"the GPU did not run {len(batch)} faces: {reason(self._log)}")

        return call, self._stream


def check_header(path: Path) -> None:
    """UserError where a TensorRT-RTX engine is not the length that its own header names, or has none.

    The runtime in native code may crash on such a file.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(24)
    size = path.stat().st_size
    if len(head) < 24 or not head.startswith(b"vtrt"):
        raise UserError(f"{path.name} is not a TensorRT-RTX engine ({size} bytes); export it again")
    (named,) = struct.unpack_from("<Q", head, 16)
    if named != size:
        raise UserError(f"{path.name} is cut short or damaged: {size} bytes, its header names {named}; export it again")


def backend_module(backend: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`; UserError that names the extra to install where it is missing."""
    try:
        return importlib.import_module(backend)
    except ImportError as problem:
        extra = backend.replace("_", "-")
        raise UserError(f"{TITLES[backend]} is not installed ({problem}): pip install 'bridgeface[{extra}]'") from None


def _torch() -> Any:
    try:
        import torch
    except ImportError as problem:
        raise UserError(f"running an engine needs torch with CUDA ({problem}): pip install torch") from None
    if not torch.cuda.is_available():
        raise UserError(
            f"running an engine needs torch with CUDA, and torch {torch.__version__} sees none: install a "
            "CUDA build of torch that this driver supports"
        )
    return torch


def driver() -> Any:
    """The CUDA driver's library where it can start, else None."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        return library if library.cuInit(0) == 0 else None
    except (OSError, AttributeError):
        return None


def capability(library: Any) -> str:
    """Compute capability of the first GPU, such as `SM89`; library: what `driver` returned."""
    # Not asked of torch, which may be a build without CUDA.
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = library.cuDeviceGet(ctypes.byref(device), 0)
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        failed = failed or library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    if failed:
        raise UserError(f"the NVIDIA driver does not tell which GPU this is (CUDA error {failed}); see nvidia-smi")
    return f"SM{major.value}{minor.value}"


@functools.cache
def log_of(trt: Any) -> Any:
    """The logger of a backend, which keeps errors and warnings in `kept` and prints nothing.

    One for all: while a builder or a runtime lives, the library ignores every other logger.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.kept: deque[tuple[bool, str]] = deque(maxlen=50)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.WARNING):
                self.kept.append((int(severity) <= int(trt.ILogger.ERROR), " ".join(message.split())))

    return Log()


def reason(log: Any) -> str:
    """The errors that a backend logged, else its warnings, in one line."""
    errors = [message for error, message in log.kept if error]
    return "; ".join(errors or [message for _, message in log.kept]) or "it gave no reason"


def made(factory: Callable[[Any], Any], log: Any) -> Any:
    """A builder or runtime, None where the library cannot make one."""
    try:
        return factory(log)
    # Where the library returns a null pointer.
    except TypeError:
        return None


def _rebuild(built: Engine, option: str = "") -> str:
    command = f"python -m export RUN --format {built.backend.replace('_', '-')} {option}".strip()
    return f"build it again from {built.onnx} ({command})"
