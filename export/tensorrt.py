"""TensorRT and TensorRT-RTX engines: built from an ONNX file, and run on the GPU they were built for."""

import hashlib
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from export import engines
from export.engines import EngineRunner, has_gpu
from export.quiet import quiet
from export.sidecar import Engine
from faces.errors import UserError
from faces.files import whole

__all__ = ["BATCH", "CAPABILITIES", "EngineRunner", "build_engine", "check_capabilities", "has_gpu", "trtexec_line"]

BATCH = (1, 32, 256)
CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""What a TensorRT-RTX engine is built for unless told otherwise: Ampere, Ada Lovelace and Blackwell."""


def build_engine(
    onnx: Path,
    engine: Path,
    backend: Literal["tensorrt", "tensorrt_rtx"],
    batch: tuple[int, int, int] = BATCH,
    capabilities: Sequence[str] = CAPABILITIES,
) -> Engine:
    """Write `engine`, built from the ONNX file `onnx`, whose precision it keeps; returns what it was built for.

    batch: least, usual and largest number of faces at once, for every input with a free batch; a file with a fixed
    batch keeps its own. capabilities: the GPUs that a TensorRT-RTX engine is for, such as `SM89`; it is built without
    a GPU. A TensorRT engine is built on, and for, the first GPU of this machine. The engine's bytes differ from build
    to build. Nothing is printed, and no file is left where the build fails.

    Raises UserError where the backend or its GPU is missing, a capability is unknown or cannot hold the network, the
    ONNX file is missing, damaged or not understood, its inputs are neither float32 nor uint8 or its outputs not
    float32, or a size other than the batch is free.
    """
    onnx, engine = Path(onnx), Path(engine)
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise UserError(f"batch sizes {batch}: take a least, a usual and a largest one, in this order, from 1 up")
    trt = engines.backend_module(backend)
    targets = _targets(trt, backend, capabilities)
    try:
        content = onnx.read_bytes()
    except OSError as problem:
        raise UserError(f"{onnx} cannot be read ({problem.strerror})") from None
    started = time.perf_counter()
    with quiet():
        plan, profile = _build(trt, backend, onnx.name, content, batch, targets)
    seconds = time.perf_counter() - started
    with whole(engine) as temporary:
        temporary.write_bytes(plan)
    return Engine(
        backend=backend,
        version=trt.__version__,
        targets=targets,
        profile=profile,
        onnx=onnx.name,
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        seconds=round(seconds, 3),
    )


def check_capabilities(names: Sequence[str]) -> None:
    """UserError where TensorRT-RTX is not installed, builds for no GPU of one of these names, or none is named."""
    _targets(engines.backend_module("tensorrt_rtx"), "tensorrt_rtx", names)


def trtexec_line(
    onnx: Path | str, shapes: Mapping[str, Sequence[int | None]], batch: tuple[int, int, int], precision: str
) -> str:
    """The command that builds the engine on the user's own GPU or Jetson, beside the ONNX file.

    shapes: of each input, the batch None where it is free (then the command names all three of `batch`). precision:
    only names the engine, as it lives in the ONNX file. TensorRT 10 needs --stronglyTyped to keep it; in TensorRT 11,
    where --fp16 and its like are gone, strong typing is always on and the option changes nothing.
    """
    onnx = Path(onnx)
    engine = onnx.with_name(f"{onnx.stem.split(f'-{precision}')[0]}-{precision}.tensorrt.engine")
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={engine}", "--stronglyTyped"]
    # trtexec refuses the three options for a file whose shapes are fixed.
    if free := {name: shape[1:] for name, shape in shapes.items() if shape[0] is None}:
        for option, size in zip(("min", "opt", "max"), batch, strict=True):
            sizes = [f"{name}:{'x'.join(map(str, (size, *rest)))}" for name, rest in free.items()]
            words.append(f"--{option}Shapes={','.join(sizes)}")
    return shlex.join(words)


def _targets(trt: Any, backend: str, capabilities: Sequence[str]) -> tuple[str, ...]:
    if backend == "tensorrt":
        library = engines.driver()
        if library is None:
            raise UserError(
                "TensorRT builds on the GPU that is to run the engine, and there is no NVIDIA driver or no GPU here: "
                "build it there, or take tensorrt-rtx, which builds without one"
            )
        return (engines.capability(library),)
    # The others (NONE, CURRENT) name no GPU.
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    unknown = [name for name in capabilities if name not in known]
    if unknown or not capabilities:
        wrong = f"unknown compute capability {unknown[0]!r}" if unknown else "no compute capability to build for"
        raise UserError(f"{wrong}. TensorRT-RTX {trt.__version__} knows: {', '.join(known)}")
    return tuple(dict.fromkeys(capabilities))


def _build(
    trt: Any, backend: str, name: str, content: bytes, batch: tuple[int, int, int], targets: tuple[str, ...]
) -> tuple[bytes, tuple[int, int, int]]:
    """The engine's bytes and the batch sizes it takes."""
    title = f"{engines.TITLES[backend]} {trt.__version__}"
    log = engines.log_of(trt)
    log.kept.clear()
    builder = engines.made(trt.Builder, log)
    # Read, not written down: its value is 1 in TensorRT 10 and 0 in 11.
    strongly = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = None if builder is None else builder.create_network(strongly)
    # Not `if not network`: the length of a network is its number of layers, none as yet.
    if network is None:
        raise UserError(f"{title} does not start: {engines.reason(log)}")
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        raise UserError(f"{name} is not understood by {title}: {_parser_said(parser)}")
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    # The parser takes some damaged files for an empty network.
    if not inputs or not outputs:
        raise UserError(f"{name} is not a whole ONNX file: it has {len(inputs)} inputs and {len(outputs)} outputs")
    for tensors, allowed in ((inputs, ("FLOAT", "UINT8")), (outputs, ("FLOAT",))):
        for tensor in tensors:
            if tensor.dtype.name not in allowed:
                raise UserError(
                    f"{name}: {tensor.name} is {tensor.dtype.name}, in every precision it has to be "
                    f"{' or '.join(allowed)}: export the ONNX file with float32 inputs and outputs"
                )
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    for tensor_name, shape in shapes.items():
        if -1 in shape[1:]:
            raise UserError(f"{name}: {tensor_name} is of shape {shape}, only the batch may be free")
        if shape[:1] == (-1,):
            profile.set_shape(tensor_name, *((size, *shape[1:]) for size in batch))
    dynamic = any(-1 in shape for shape in shapes.values())
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise UserError(f"{name} takes no batch of {batch}: {engines.reason(log)}")
    if backend == "tensorrt_rtx":
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, target), index):
                raise UserError(f"{title} takes no target {target}: {engines.reason(log)}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = engines.reason(log)
        # The builder stops at the first GPU that cannot run the network and names it.
        refused = [target for target in targets if target in said]
        advice = "; build it for other GPUs or in another precision" if refused else ""
        raise UserError(f"{name} cannot be built for {', '.join(refused or targets)}: {said}{advice}")
    fixed, *_ = shapes[inputs[0].name] or (1,)
    return bytes(memoryview(plan)), batch if dynamic else (fixed, fixed, fixed)


def _parser_said(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    # Its description alone can be as little as `false`.
    words = [(one.node_operator(), one.node_name(), one.code().name, one.desc()) for one in errors]
    return "; ".join(" ".join(" ".join(parts).split()) for parts in words)
