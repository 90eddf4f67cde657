"""The CPU runtimes that a file is timed in: those of `export.load`, and OpenVINO, which only the clock uses."""

import contextlib
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import export
from export import sidecar as sidecars
from export.runtimes import Artifact
from export.sidecar import Sidecar
from export.targets import TENSORRT
from faces.errors import UserError

RUNTIMES = {"onnxruntime": ("onnx",), "litert": ("tflite",), "tflite-runtime": ("tflite",), "openvino": ("onnx",)}
"""Runtime and the formats it is timed with. OpenVINO reads TFLite too, but gains nothing by it."""
_MODULES = {
    "onnxruntime": "onnxruntime",
    "litert": "ai_edge_litert",
    "tflite-runtime": "tflite_runtime",
    "openvino": "openvino",
}
_EXTRAS = {
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
    "tflite-runtime": "'tflite-runtime==2.14.0' 'numpy<2', which needs an environment of its own",
    "openvino": "'bridgeface[openvino]'",
}


_AGREES = 0.97
"""Least cosine to onnxruntime's features: int8 kernels round each in their own way, bfloat16 more."""


class Runner(Protocol):
    """What the clock times; `export.runtimes.Artifact` is one. `arithmetic`, where it has one, is the type that it
    multiplies in where that is not the file's own precision."""

    path: Path
    sidecar: Sidecar
    threads: int

    @property
    def runtime(self) -> str: ...

    def run(self, batch: np.ndarray) -> np.ndarray: ...

    def prepare(self, images: np.ndarray) -> np.ndarray: ...


class OpenVino:
    """An ONNX file in OpenVINO on the CPU, compiled for each batch size as it comes (fixed shapes run fastest).

    What it computes is held to onnxruntime before it is timed: with a fixed shape on one thread, OpenVINO 2026.4
    gives int8 networks other features (cosine .5) on CPUs with AVX-512 VNNI, as oneDNN's convolution does at padded
    borders (uxlfoundation/oneDNN issue 5080). It then gets a free batch, and where that is wrong too, UserError.

    arithmetic: `bf16` lets it compute float layers in bfloat16, where `capabilities` has it.
    """

    def __init__(self, path: str | Path, threads: int, arithmetic: str | None = None) -> None:
        """UserError where OpenVINO is missing, refuses the file, or has no such arithmetic on this CPU."""
        ov = _openvino()
        self.path, self.sidecar, self.threads, self.arithmetic = Path(path), sidecars.read(path), threads, arithmetic
        if arithmetic == "bf16" and "BF16" not in capabilities():
            raise UserError(f"{self.path.name}: this CPU has no bfloat16 that OpenVINO uses")
        self.runtime = f"openvino {ov.__version__.split('-')[0]}"
        self._core = ov.Core()
        self._tensor = ov.Tensor
        try:
            self._model = self._core.read_model(str(path))
        # OpenVINO raises RuntimeError for every broken file, and others by version.
        except Exception as problem:
            raise UserError(f"{self.path}: OpenVINO does not read it: {str(problem).splitlines()[0]}") from problem
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # The process is pinned already, and two pinnings may disagree.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if arithmetic == "bf16" else "f32",
        }
        self._shape: tuple[int, ...] = ()
        self._request: Any = None
        self.compiled: Any = None

    def prepare(self, images: np.ndarray) -> np.ndarray:
        fed = self.sidecar.input
        if fed.dtype != "float32" or fed.layout != "NCHW":
            raise UserError(f"{self.path.name}: OpenVINO is timed with float ONNX inputs; export without --uint8-input")
        return np.ascontiguousarray((images.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2))

    def run(self, batch: np.ndarray) -> np.ndarray:
        if batch.shape != self._shape:
            self.compile(batch.shape)
        self._request.set_input_tensor(self._tensor(batch, shared_memory=True))
        self._request.infer()
        return np.array(self._request.get_output_tensor(0).data)

    def compile(self, shape: tuple[int, ...], **more: Any) -> None:
        """Compile for one input shape; more: OpenVINO's settings, as PERF_COUNT."""
        found = []
        for batch in (shape[0], -1):
            self._model.reshape([batch, *shape[1:]])
            self.compiled = self._core.compile_model(self._model, "CPU", self._settings | more)
            self._request, self._shape = self.compiled.create_infer_request(), shape
            found.append(self._least_cosine(shape[0]))
            if found[-1] >= _AGREES:
                return
        raise UserError(
            f"{self.path.name}: {self.runtime} computes something else than onnxruntime on this CPU "
            f"(least cosine {found[0]:.2f}, with a free batch {found[1]:.2f}), so its speed says nothing"
        )

    def _least_cosine(self, batch: int) -> float:
        faces, wanted = self._expected
        at = np.arange(batch) % len(faces)
        found, wanted = self.run(self.prepare(faces[at])), wanted[at]
        return float(((found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)).min())

    @cached_property
    def _expected(self) -> tuple[np.ndarray, np.ndarray]:
        px = self.sidecar.input.px
        noise = np.random.default_rng(0).integers(0, 256, (8, px, px, 3), dtype=np.uint8)
        return noise, export.load(self.path, 1).embed(noise)

    def profile(self, batch: np.ndarray) -> list[tuple[str, str, float]]:
        """(operator's name, kernel, microseconds) of one call; needs `compile(..., PERF_COUNT=True)`."""
        self.run(batch)
        return [
            (one.node_name, f"{one.node_type} {one.exec_type}", one.real_time.total_seconds() * 1e6)
            for one in self._request.profiling_info
            if one.real_time.total_seconds() > 0
        ]


def capabilities() -> list[str]:
    """What OpenVINO can compute in on this CPU, as `FP32`, `INT8`, `BF16`."""
    return list(_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as problem:
        raise UserError(f"OpenVINO is not installed ({problem}): pip install {_EXTRAS['openvino']}") from None
    return openvino


def installed(runtime: str) -> bool:
    return importlib.util.find_spec(_MODULES[runtime]) is not None


def runtimes_of(file: Path, wanted: Sequence[str]) -> list[tuple[str, str | None]]:
    """(runtime, None or why it does not run this file) for each of `wanted` that knows the file's format.

    Empty `wanted`: the runtime that `export.load` takes, alone.
    """
    format = file.suffix.removeprefix(".")
    if not wanted:
        return [("", None)]
    found: list[tuple[str, str | None]] = []
    for name in wanted:
        if name not in RUNTIMES:
            raise UserError(f"unknown runtime {name!r}. Known: {', '.join(RUNTIMES)}")
        if format not in RUNTIMES[name]:
            continue
        if not installed(name):
            found.append((name, f"not installed: pip install {_EXTRAS[name]}"))
        elif name == "litert" and installed("tflite-runtime"):
            found.append((name, "tflite-runtime is installed too and is taken first"))
        elif name == "openvino" and file.is_file() and _consumer(file) == TENSORRT:
            found.append((name, "this int8 file is for TensorRT"))
        else:
            found.append((name, None))
    return found


def _consumer(file: Path) -> str | None:
    # A missing or broken sidecar is told when the file is opened.
    with contextlib.suppress(UserError):
        return sidecars.read(file, verify=False).consumer
    return None


def open_runner(file: Path, runtime: str, threads: int, arithmetic: str | None = None) -> Runner:
    """The file in a runtime of `RUNTIMES` ("": the usual one); UserError where either cannot be had."""
    if runtime == "openvino":
        return OpenVino(file, threads, arithmetic)
    return export.load(file, threads)


__all__ = ["RUNTIMES", "Artifact", "OpenVino", "Runner", "capabilities", "installed", "open_runner", "runtimes_of"]
