"""ONNX, fp32 or fp16, any batch size."""

import contextlib
import copy
import warnings
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from export.quiet import quiet
from export.tracing import ALPHA_NAME, INPUT_NAME, OUTPUT_NAME, at_rest
from faces.errors import UserError
from faces.files import whole
from teachers.lora import use_alpha

OPSET = 20
IR_VERSION = 10
_LIMIT = 2**31


class _Graph(nn.Module):
    """The model between the file's inputs and its output; see `export_onnx`."""

    def __init__(self, model: nn.Module, half: bool, uint8_input: bool, normalise: bool) -> None:
        super().__init__()
        self.model, self.half_precision, self.uint8_input, self.normalise = model, half, uint8_input, normalise

    def forward(self, face: Tensor, alpha: Tensor | None = None) -> Tensor:
        if self.uint8_input:
            # The cast first: TensorRT refuses to transpose bytes.
            face = face.to(torch.float32).permute(0, 3, 1, 2).contiguous() / 255
        if self.half_precision:
            face = face.half()
        with use_alpha(self.model, alpha) if alpha is not None else contextlib.nullcontext():
            embedding = self.model(face).to(torch.float32)
        # Not F.normalize, whose exported graph expands the norm to the embedding's shape.
        return embedding / embedding.norm(dim=1, keepdim=True).clamp_min(1e-12) if self.normalise else embedding


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_px: int,
    *,
    precision: Literal["fp32", "fp16"] | str = "fp32",
    alpha_input: bool = False,
    uint8_input: bool = False,
    normalise: bool = False,
) -> None:
    """Write `model` as one ONNX file: `face`, float32 RGB in [0, 1] (N, 3, p, p), to `embedding`, float32 (N, D).

    fp16: weights and arithmetic are half precision; the input is cast inside, the output back. alpha_input: a second
    input `alpha`, float32 (N,) in [0, 1], mixes the twin adapters of each image (`teachers.lora.use_alpha`).
    uint8_input: `face` is uint8 RGB (N, p, p, 3) instead, the camera's bytes. normalise: embeddings leave with
    length 1, computed in fp32.

    The batch is free, the weights are inside, the file passes onnx.checker, and the same weights give the
    same bytes. The model's training modes are left as they were. Raises UserError where the model's graph
    cannot be traced, is larger than the 2 GiB that one ONNX file can hold, or has values that fp16 cannot.
    """
    if precision not in ("fp32", "fp16"):
        raise ValueError(f"precision {precision!r}, known: fp32, fp16; int8 is export.quantize's")
    half = precision == "fp16"
    tensors = [*model.parameters(), *model.buffers()]
    if sum(t.numel() * (2 if half else t.element_size()) for t in tensors) >= _LIMIT:
        raise _too_large(model)
    if half:
        _check_half(model)
    batch = torch.export.Dim("batch", min=1)
    # Two faces, as the tracer takes a size of 1 for a constant.
    shape = (2, input_px, input_px, 3) if uint8_input else (2, 3, input_px, input_px)
    sample: tuple[Tensor, ...] = (torch.zeros(shape, dtype=torch.uint8 if uint8_input else torch.float32),)
    if alpha_input:
        sample += (torch.full((2,), 0.5),)
    names = [INPUT_NAME, ALPHA_NAME][: len(sample)]
    # Traced with the fused attention kernel, a reshape behind attention becomes a view of that kernel's
    # memory layout, which the decomposed graph does not have.
    with at_rest(model) as resting, sdpa_kernel(SDPBackend.MATH), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = copy.deepcopy(resting).half() if half else resting
        try:
            program = torch.onnx.export(
                _Graph(inner, half, uint8_input, normalise).eval(),
                sample,
                input_names=names,
                output_names=[OUTPUT_NAME],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes={name: {0: batch} for name in names},
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as problem:
            # The exporter's own message is a page of advice; what went wrong is behind it.
            reason = str(problem.__cause__ or problem).strip().split("\n")[0]
            raise UserError(f"{type(model).__name__} cannot be exported to ONNX: {reason}") from problem
    assert program is not None, "the dynamo exporter returns a program"
    with whole(path) as temporary:
        program.save(str(temporary), external_data=False)
        if temporary.stat().st_size >= _LIMIT:
            raise _too_large(model)
        proto = onnx.load(str(temporary))
        _strip(proto)
        assert (proto.ir_version, {entry.domain: entry.version for entry in proto.opset_import}[""]) == (
            IR_VERSION,
            OPSET,
        )
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, str(temporary))


def _too_large(model: nn.Module) -> UserError:
    return UserError(f"{type(model).__name__} needs more than the 2 GiB that one ONNX file can hold")


def _check_half(model: nn.Module) -> None:
    largest = torch.finfo(torch.float16).max
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and value.numel() and value.detach().abs().max() > largest:
            raise UserError(f"{type(model).__name__}: {name} holds values above {largest:g}, more than fp16 can")


def _strip(proto: onnx.ModelProto) -> None:
    # The exporter notes the source file and line of every node: that names the machine, and changes the
    # bytes.
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (proto, graph, *graph.node, *values):
        del part.metadata_props[:]
        part.ClearField("doc_string")
