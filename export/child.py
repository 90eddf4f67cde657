"""Open a model file that we do not trust in a child process first: a crash there is one line here.

Runtimes are native code, and a hostile or damaged file may crash them or make them ask for any amount of memory. The
child (`python -m export.child FILE FORMAT SECONDS`) checks the file's frame, limits its own memory, processor time and
output (module `resource`: Linux; macOS keeps the processor time, and enforces the memory only in part), opens the
file with the runtime of its format and runs one batch of zeros. Where `resource` is missing (Windows) only the child
process and the timeout protect. What the file does with other images or more of them is not known afterwards: this
is a filter, not a sandbox.
"""

import contextlib
import json
import math
import mmap
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from faces.errors import UserError

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

HEADROOM = 2**30
"""Bytes of memory that opening a file may take beyond its own size and what the runtime takes without a file."""
FORMATS = ("onnx", "tflite")
_MOST_PRINTED = 2**20
_MOST_TENSORS = 256
_MOST_DEPTH = 50
_ALLOCATION = re.compile(r"alloc|out of memory|MemoryError", re.IGNORECASE)
# onnxruntime's names that are not numpy's.
_TYPES = {"float": "float32", "double": "float64"}


class Tensor(NamedTuple):
    """dtype: numpy's name; shape: None for a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Probe:
    """What the file says of itself; `opset` (of ONNX's own domain) and `ir_version` are None for TFLite."""

    format: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    opset: int | None = None
    ir_version: int | None = None


def probe(path: Path, format: str | None = None, timeout: float = 60) -> Probe:
    """Open `path` in a child process for at most `timeout` seconds, and run one batch of zeros there.

    format: `onnx` or `tflite`; None = by the file's content and ending. ONNX weights in files outside the folder are
    refused, those beside the file count as its size. As onnxruntime copies weights, a sound ONNX file of some 1 GB may
    be refused too. Raises UserError, one line that names the file, where there is
    none, the format is another, the runtime is missing or refuses the file, or the child crashes, takes too long or
    asks for more than `HEADROOM`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    format = format or _format_of(path)
    if format not in FORMATS:
        raise UserError(f"{path}: a {format} file cannot be tried out: it runs code; known: {', '.join(FORMATS)}")
    with tempfile.TemporaryFile() as answer:
        child = subprocess.Popen(
            _command(path.resolve(), format, timeout),
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise UserError(f"{path}: not a usable {format} file: it took more than {timeout:g} s to open") from None
        finally:
            child.kill()
            child.wait()
        answer.seek(0)
        text = answer.read(_MOST_PRINTED)
    try:
        return _understood(text, code, format, timeout)
    except UserError as problem:
        raise UserError(f"{path}: not a usable {format} file: {problem}") from None


def _format_of(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(8)[4:] == b"TFL3":
            return "tflite"
    ending = path.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise UserError(f"{path}: neither a TFLite file nor one that ends in .onnx; known: {', '.join(FORMATS)}")
    return ending


def _command(path: Path, format: str, timeout: float) -> list[str]:
    # -P: a json.py in the working folder must not become ours.
    return [sys.executable, "-P", "-m", "export.child", str(path), format, str(timeout)]


def _environment() -> dict[str, str]:
    ours = str(Path(__file__).resolve().parent.parent)
    kept = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{ours}{os.pathsep}{kept}" if kept else ours, "OMP_NUM_THREADS": "1"}


def _understood(text: bytes, code: int, format: str, timeout: float) -> Probe:
    """The child's answer. UserError says what went wrong, without the file's name."""
    if code < 0:
        if -code == getattr(signal, "SIGXCPU", None):
            raise UserError(f"it took more than {timeout:g} s to open")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        raise UserError(f"the process that opened it died of {name}")
    try:
        said = json.loads(text)
        if problem := said.get("problem"):
            raise UserError(" ".join(str(problem).split()))
        tensors = [
            tuple(Tensor(str(n), str(t), tuple(None if d is None else int(d) for d in s)) for n, t, s in said[side])
            for side in ("inputs", "outputs")
        ]
        return Probe(format, tensors[0], tensors[1], said["opset"], said["ir_version"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"the process that opened it gave no answer (exit code {code})") from None


# What follows runs in the child.


def main(path: Path, format: str, seconds: float) -> None:
    """Print one JSON line: what the file is, or `{"problem": ...}`."""
    # What native code prints must not get into the answer.
    answer = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 1)
    _limit("RLIMIT_CORE", 0)
    # Where the parent was killed and cannot end this process.
    _limit("RLIMIT_CPU", math.ceil(seconds) + 1)
    _limit("RLIMIT_FSIZE", _MOST_PRINTED)
    size = path.stat().st_size
    said: dict[str, Any]
    try:
        if format == "onnx":
            _limit("RLIMIT_AS", _taken() + size + HEADROOM)
            opset, ir_version, beside = _read_onnx(path)
            said = _open_onnx(path, size + beside) | {"opset": opset, "ir_version": ir_version}
        else:
            _check_flatbuffer(path, size)
            said = _open_tflite(path, size) | {"opset": None, "ir_version": None}
        if max(len(said["inputs"]), len(said["outputs"])) > _MOST_TENSORS:
            said = {"problem": f"it has more than {_MOST_TENSORS} inputs or outputs"}
    # Whatever a runtime raises is the answer.
    except Exception as problem:
        told = (str(problem).strip() or type(problem).__name__).split("\n")[0]
        if isinstance(problem, MemoryError) or _ALLOCATION.search(told):
            told = f"it asks for more than {HEADROOM // 2**20} MiB of memory beyond its size ({told[:200]})"
        said = {"problem": told[:400]}
    line = json.dumps(said)
    answer.write(line if len(line) < _MOST_PRINTED else '{"problem": "the names of its tensors are too long"}')
    answer.flush()
    # A runtime that tidies up after a failure may still crash.
    os._exit(0)


def _limit(name: str, most: int) -> None:
    kind = getattr(resource, name, None)
    # macOS refuses some limits.
    with contextlib.suppress(ValueError, OSError):
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            # The soft limit alone: the one on memory is raised by what the runtime's own libraries take.
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _taken() -> int:
    """Bytes of address space that this process has taken so far; 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 2**30  # a Python process with a runtime takes .2 GB


def _open_onnx(path: Path, size: int) -> dict[str, Any]:
    import onnxruntime

    _limit("RLIMIT_AS", _taken() + size + HEADROOM)
    # As `export.runtimes` opens it: what is folded there must be folded here.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    sides = [
        [(node.name, _numpy_type(node.type), [d if isinstance(d, int) and d > 0 else None for d in node.shape])
         for node in nodes]
        for nodes in (session.get_inputs(), session.get_outputs())
    ]  # fmt: skip
    session.run(None, {name: np.zeros([d or 1 for d in shape], dtype) for name, dtype, shape in sides[0]})
    return {"inputs": sides[0], "outputs": sides[1]}


def _numpy_type(name: str) -> str:
    inner = name.removeprefix("tensor(").removesuffix(")")
    dtype = _TYPES.get(inner, inner)
    with contextlib.suppress(TypeError):
        return np.dtype(dtype).name
    return name


def _open_tflite(path: Path, size: int) -> dict[str, Any]:
    from export.runtimes import _tflite_runtime

    interpreter_class, _ = _tflite_runtime()
    _limit("RLIMIT_AS", _taken() + size + HEADROOM)
    interpreter = interpreter_class(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    sides = []
    for details in (interpreter.get_input_details(), interpreter.get_output_details()):
        signatures = [detail.get("shape_signature") for detail in details]
        shapes = [d["shape"] if s is None or not len(s) else s for d, s in zip(details, signatures, strict=True)]
        sides.append(
            [(detail["name"], np.dtype(detail["dtype"]).name, [int(n) if n > 0 else None for n in shape])
             for detail, shape in zip(details, shapes, strict=True)]
        )  # fmt: skip
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    interpreter.invoke()
    return {"inputs": sides[0], "outputs": sides[1]}


def _check_flatbuffer(path: Path, size: int) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:] != b"TFL3":
        raise UserError("it is no TFLite file")
    root = int.from_bytes(head[:4], "little")
    if not 8 <= root <= size - 4:
        raise UserError(f"its header points to byte {root:,} of {size:,}")


# Protocol buffer messages of ONNX (onnx.proto3) that can hold a tensor: field number -> message.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_IR_VERSION, _OPSET_IMPORT, _EXTERNAL_DATA = 1, 8, 13


def _read_onnx(path: Path) -> tuple[int | None, int | None, int]:
    """Opset, IR version, and the bytes of other files that hold weights; without any ONNX package.

    UserError where a length leads out of the file, or weights lie outside its folder.
    """
    if not path.stat().st_size:
        raise UserError("it is empty")
    opset = ir_version = None
    beside: dict[Path, int] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        todo = [("Model", 0, len(data), 0)]
        while todo:
            kind, start, end, depth = todo.pop()
            if depth > _MOST_DEPTH:
                raise UserError(f"its graphs are nested more than {_MOST_DEPTH} messages deep")
            for field, value, low, high in _fields(data, start, end):
                if inner := _MESSAGES[kind].get(field):
                    todo.append((inner, low, high, depth + 1))
                elif kind == "Tensor" and field == _EXTERNAL_DATA:
                    entry = {field: data[a:b] for field, _, a, b in _fields(data, low, high) if b - a < 10_000}
                    if entry.get(1) == b"location":
                        other = _beside(path, os.fsdecode(entry.get(2, b"")))
                        beside[other] = other.stat().st_size
                elif kind == "Model" and field == _IR_VERSION:
                    ir_version = value
                elif kind == "Model" and field == _OPSET_IMPORT:
                    parts = {field: (value, data[a : min(b, a + 8)]) for field, value, a, b in _fields(data, low, high)}
                    if parts.get(1, (None, b""))[1] in (b"", b"ai.onnx"):
                        opset = parts.get(2, (None, b""))[0]
    return opset, ir_version, sum(beside.values())


def _beside(path: Path, location: str) -> Path:
    folder = path.parent.resolve()
    other = (folder / location).resolve()
    if not other.is_relative_to(folder) or "\\" in location:
        raise UserError(f"it reads weights from {location[:100]!r}, which escapes model directory")
    if not other.is_file():
        raise UserError(f"it reads weights from {location[:100]!r}, which is no file")
    return other


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int | None, int, int]]:
    """(field number, its value if it is a varint, first and last byte of its content) of one message."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        field, wire = tag >> 3, tag & 7
        value, low = None, at
        if wire == 0:
            value, at = _varint(data, at, end)
        elif wire == 2:
            length, low = _varint(data, at, end)
            at = low + length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise UserError(f"byte {at:,} is no protocol buffer")
        if not field:
            raise UserError(f"byte {low:,} is no protocol buffer")
        if at > end:
            raise UserError(f"it names {at - low:,} bytes at byte {low:,}, where {end - low:,} are left")
        yield field, value, low, at


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise UserError(f"it ends in the middle of a number, at byte {at:,}")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise UserError(f"a number at byte {at:,} is longer than any")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
