"""One class for every artifact: opened by its sidecar, run by the runtime of its format. Needs no torch."""

import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from export import sidecar as sidecars
from export.quiet import quiet
from export.sidecar import Sidecar
from export.targets import TENSORRT
from faces.errors import UserError

# Distribution and the module that holds its `Interpreter`, in the order they are tried.
_TFLITE = {
    "tflite-runtime": "tflite_runtime.interpreter",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}


_ONNX_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)", "int8": "tensor(int8)"}


class _Backend(Protocol):
    name: str

    def run(self, batch: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray: ...


class _Onnx:
    def __init__(self, path: Path, contract: Sidecar, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as problem:
            raise UserError(f"an ONNX artifact needs onnxruntime ({problem}): pip install onnxruntime") from None
        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong comes as an exception
        if contract.consumer == TENSORRT:
            # onnxruntime's own integer kernels for symmetric signed activations saturate (least cosine .57 on a CPU
            # without VNNI); node by node it computes what the file says, which is what TensorRT does.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = [(node.name, node.type, tuple(node.shape[1:])) for node in self._session.get_inputs()]
        fed = contract.input
        wanted: list[tuple[Any, ...]] = [(fed.name, _ONNX_TYPES[fed.dtype], fed.shape[1:])]
        self._alpha = contract.alpha.input if contract.alpha is not None else None
        if self._alpha is not None:
            wanted.append((self._alpha, "tensor(float)", ()))
        if found != wanted:
            raise UserError(f"its inputs are {found}, its sidecar names {wanted}")
        if contract.output not in (outputs := [node.name for node in self._session.get_outputs()]):
            raise UserError(f"its outputs are {outputs}, its sidecar names {contract.output!r}")
        self._input, self._outputs = contract.input.name, [contract.output]

    def run(self, batch: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
        fed = {self._input: batch}
        if self._alpha is not None:
            fed[self._alpha] = np.asarray(alpha, np.float32)
        return self._session.run(self._outputs, fed)[0]


class _TFLite:
    def __init__(self, path: Path, contract: Sidecar, threads: int) -> None:
        interpreter_class, self.name = _tflite_runtime()
        with quiet():
            self._interpreter = interpreter_class(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        found = [(np.dtype(detail["dtype"]).name, tuple(detail["shape"][1:].tolist())) for detail in inputs]
        if found != [(contract.input.dtype, contract.input.shape[1:])] or len(outputs) != 1:
            raise UserError(f"its inputs are {found}, its sidecar names {contract.input.shape[1:]}")
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]
        self._shape = tuple(inputs[0]["shape"].tolist())

    def run(self, batch: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
        if batch.shape != self._shape:
            self._interpreter.resize_tensor_input(self._input, batch.shape)
            self._interpreter.allocate_tensors()
            self._shape = batch.shape
        self._interpreter.set_tensor(self._input, batch)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)


def _tflite_runtime() -> tuple[Any, str]:
    for distribution, module in _TFLITE.items():
        try:
            interpreter = importlib.import_module(module).Interpreter
            version = importlib.import_module(module.split(".")[0]).__version__
        except ImportError:
            continue
        return interpreter, f"{distribution} {version}"
    raise UserError(f"a TFLite artifact needs one of {', '.join(_TFLITE)}: pip install ai-edge-litert")


def _backend(path: Path, contract: Sidecar, threads: int) -> _Backend:
    if contract.format == "onnx":
        return _Onnx(path, contract, threads)
    if contract.format == "tflite":
        return _TFLite(path, contract, threads)
    from export.tensorrt import EngineRunner

    return EngineRunner(path, contract)


class Artifact:
    """An exported model, ready to embed; `sidecar` is its contract, `runtime` names what runs it."""

    def __init__(self, path: str | Path, sidecar: Sidecar, threads: int = 1) -> None:
        """Open `path` under a contract already read; `load` is the usual way in.

        Raises UserError naming the file where the runtime is missing or refuses it, or where the file's input
        is not the one of the contract.
        """
        self.path, self.sidecar, self.threads = Path(path), sidecar, threads
        try:
            self._backend = _backend(self.path, sidecar, threads)
        except UserError as problem:
            raise UserError(f"{self.path}: {problem}") from problem
        # Each runtime has its own exceptions for a broken file; all of them say the same to the user.
        except Exception as problem:
            raise UserError(f"{self.path}: not a usable {sidecar.format} file: {_first_line(problem)}") from problem

    @property
    def runtime(self) -> str:
        """Runtime and version, e.g. `onnxruntime 1.31.1`."""
        return self._backend.name

    def run(self, batch: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
        """The file's own function, unchecked: a batch in the sidecar's layout, type and range, and alphas (N,) where
        it takes them, to (N, D) float32."""
        return self._backend.run(batch, alpha)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, p, p, 3) to what `run` takes."""
        fed = self.sidecar.input
        if fed.dtype == "float32":
            batch = images.astype(np.float32) / np.float32(255)
        elif fed.dtype == "uint8":
            batch = images
        else:
            # At scale 1/255 the byte b is the integer b - 128: the same bits but for the highest.
            batch = (images ^ 0x80).view(np.int8)
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)) if fed.layout == "NCHW" else batch

    def embed(self, images: np.ndarray, batch: int = 64, alpha: np.ndarray | None = None) -> np.ndarray:
        """Embeddings (N, D) float32 of aligned crops (N, p, p, 3), uint8 RGB, p = `sidecar.input.px`, N >= 0.

        At most `batch` faces, at least 1, go through the runtime at once; an engine takes no more and no fewer than it
        was built for, and the last face stands for those that are missing. alpha: (N,) in [0, 1], each image's own,
        for a file that takes it (`sidecar.alpha.input`), and for no other. Raises UserError on images of another type
        or shape, and where the runtime fails.
        """
        px = self.sidecar.input.px
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (px, px, 3):
            found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise UserError(f"{self.path.name} takes uint8 RGB faces of shape (N, {px}, {px}, 3), got {found}")
        takes = self.sidecar.takes_alpha
        if takes != (alpha is not None) or (alpha is not None and alpha.shape != (len(images),)):
            wanted = f"an alpha in [0, 1] for each of the {len(images)} faces" if takes else "no alpha"
            raise UserError(f"{self.path.name} takes {wanted}")
        if batch < 1:
            raise ValueError(f"batch {batch}: give 1 or more")
        least, _, most = (1, batch, batch) if self.sidecar.engine is None else self.sidecar.engine.profile
        batch = max(least, min(batch, most))
        embeddings = [np.empty((0, self.sidecar.embedding_dim), dtype=np.float32)]
        for start in range(0, len(images), batch):
            rows = np.arange(start, min(start + batch, len(images)))
            real = len(rows)
            rows = np.pad(rows, (0, max(0, least - real)), mode="edge")
            part = self.prepare(images[rows])
            try:
                found_part = self.run(part, None if alpha is None else alpha[rows])
            except Exception as problem:
                raise UserError(
                    f"{self.path}: {self.runtime} failed on {len(part)} faces: {_first_line(problem)}"
                ) from problem
            if found_part.shape != (len(part), self.sidecar.embedding_dim):
                raise UserError(f"{self.path}: {len(part)} faces gave an output of shape {found_part.shape}")
            embeddings.append(found_part[:real])
        return np.concatenate(embeddings)


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).split("\n")[0]


def load(path: str | Path, threads: int = 1, *, changed: bool = False) -> Artifact:
    """Open an artifact by the sidecar beside it, on the CPU with `threads` threads.

    The artifact's size and hash are compared with the sidecar before a runtime sees the file, as runtimes in native
    code may crash on a damaged one. `changed` opens a file that is no longer the one of its sidecar all the same (it
    was simplified by another tool, say), after a child process with limits did (`export.child`): parity and
    thresholds are then no longer proved. Raises UserError (see `sidecar.read`, `Artifact` and `child.probe`); for a
    file without a sidecar it tells what a child process found in it.

    >>> embeddings = export.load("student.onnx").embed(crops)  # (N, 16, 16, 3) uint8 -> (N, 128) float32
    """
    from export.child import probe

    path = Path(path)
    if path.is_file() and not sidecars.path_of(path).exists():
        found = probe(path)
        inputs = ", ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in found.inputs)
        raise UserError(
            f"{path}: its sidecar {sidecars.path_of(path).name} is missing, and without it nobody knows how to crop a "
            f"face for it ({found.format}, input {inputs}); export writes both"
        )
    if not changed:
        return Artifact(path, sidecars.read(path), threads)
    try:
        return Artifact(path, sidecars.read(path), threads)
    except sidecars.Mismatch:
        probe(path)
        return Artifact(path, sidecars.read(path, verify=False), threads)
