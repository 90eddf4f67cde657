"""ONNX, fp32, any batch size."""

import warnings
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from export.quiet import quiet
from export.tracing import INPUT_NAME, OUTPUT_NAME, at_rest
from faces.errors import UserError
from faces.files import whole

OPSET = 20


def export_onnx(model: nn.Module, path: str | Path, input_px: int) -> None:
    """Write `model` as one ONNX file: `face`, float32 RGB in [0, 1] (N, 3, p, p), to `embedding` (N, D).

    The batch is free, the weights are inside, the file passes onnx.checker, and the same weights give the
    same bytes. The model's training modes are left as they were. Raises UserError where the model's graph
    cannot be traced or is larger than the 2 GiB that one ONNX file can hold.
    """
    batch = torch.export.Dim("batch", min=1)
    # Two faces, as the tracer takes a size of 1 for a constant.
    sample = torch.zeros(2, 3, input_px, input_px)
    # Traced with the fused attention kernel, a reshape behind attention becomes a view of that kernel's
    # memory layout, which the decomposed graph does not have.
    with at_rest(model) as resting, sdpa_kernel(SDPBackend.MATH), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                resting,
                (sample,),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as problem:
            raise UserError(f"{type(model).__name__} cannot be exported to ONNX: {problem}") from problem
    assert program is not None, "the dynamo exporter returns a program"
    with whole(path) as temporary:
        program.save(str(temporary), external_data=False)
        if temporary.stat().st_size >= 2**31:
            raise UserError(f"{type(model).__name__} needs more than the 2 GiB that one ONNX file can hold")
        proto = onnx.load(str(temporary))
        _strip(proto)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, str(temporary))


def _strip(proto: onnx.ModelProto) -> None:
    # The exporter notes the source file and line of every node: that names the machine, and changes the
    # bytes.
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (proto, graph, *graph.node, *values):
        del part.metadata_props[:]
        part.ClearField("doc_string")
