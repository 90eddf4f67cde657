"""int8 ONNX by onnxruntime's static quantiser: one file for CPU runtimes, another for TensorRT, which disagree."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from export.quiet import quiet
from export.tracing import ALPHA_NAME, INPUT_NAME
from faces.errors import UserError
from faces.files import whole

Flavour = Literal["cpu", "tensorrt"]
FLAVOURS = ("cpu", "tensorrt")
BATCH = 64


def quantize_onnx(
    fp32: str | Path, path: str | Path, crops: np.ndarray, flavour: Flavour, unsigned: bool = False
) -> None:
    """Write the fp32 ONNX file of `export.onnx` as int8 QDQ, with ranges from the faces `crops`.

    crops: (N, p, p, 3) uint8 RGB, N >= 1, as the model sees them; a file that takes bytes gets them, one that takes
    alphas gets them evenly from [0, 1]. Weights are int8, symmetric, one scale an output channel. The same
    input gives the same bytes. Inputs and outputs keep their types.

    `cpu`: unsigned activations, which onnxruntime runs fastest on x86, and weights of 7 of the 8 bits: on a CPU
    without VNNI two products u8 x s8 are added in 16 bits and saturate (measured on AVX2: a least cosine of .32 with
    8 bits, .99 with 7). unsigned: weights u8 with a zero point, which saturate nowhere and keep 8 bits, slower
    where VNNI multiplies u8 x s8. Ranges are least and greatest value. `tensorrt`: symmetric signed activations before
    Conv, Gemm and MatMul, float biases, a quantiser of its own for each consumer: what TensorRT parses. What these
    layers give is not rounded, as TensorRT asks for. Weights are stored as int8 (with `AddQDQPairToWeight` they would
    be stored as floats, three times the size, the same values). To run it in onnxruntime, turn its graph optimisations
    off. Ranges are the mean over batches of 64 of their least and greatest value.

    The ranges were chosen by the least cosine to the fp32 student on 1,701 held-out faces of a student trained on the
    ORL faces, with 256, 512 and 1,024 calibration faces of other people: cpu min-max .988/.992/.992, mean of batches
    .991/.988/.990, percentile 99.999 .991/.989/.990, 99.9 .855/.860/.862; tensorrt min-max .984/.971/.979, mean of
    batches .985/.981/.985, percentile 99.999 .982/.974/.981, 99.9 .860/.869/.864 (when it still rounded what layers
    give). Entropy chose the same ranges as min-max.

    Raises UserError where the file is no ONNX model of one face input, or the faces do not fit it.
    """
    if flavour not in FLAVOURS:
        raise ValueError(f"flavour {flavour!r}, known: {FLAVOURS}")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    fp32 = Path(fp32)
    reader = _Reader(fp32, crops)
    options: dict[str, Any] = {
        "activation_type": QuantType.QUInt8,
        "reduce_range": not unsigned,
    }
    if flavour == "tensorrt":
        options = {
            "activation_type": QuantType.QInt8,
            "op_types_to_quantize": ["Conv", "Gemm", "MatMul"],
            "extra_options": {
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "DedicatedQDQPair": True,
                "CalibMovingAverage": True,
                "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "MatMul"],
            },
        }
    with whole(path) as temporary, quiet():
        ready = temporary.with_suffix(".ready.onnx")
        try:
            # The exporter has named every shape; the symbolic inference stumbles over a norm.
            quant_pre_process(str(fp32), str(ready), skip_symbolic_shape=True)
            quantize_static(
                str(ready),
                str(temporary),
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                **options,
            )
        # onnxruntime, onnx and protobuf have their own exceptions each.
        except Exception as problem:
            reason = str(problem).strip().split("\n")[0] or type(problem).__name__
            raise UserError(f"{fp32} cannot be quantised: {reason}") from problem
        finally:
            ready.unlink(missing_ok=True)
        onnx.checker.check_model(str(temporary), full_check=True)


class _Reader:
    """The calibration faces, batch after batch, as the file takes them."""

    def __init__(self, file: Path, crops: np.ndarray) -> None:
        try:
            graph = onnx.load(str(file), load_external_data=False).graph
        except Exception as problem:
            raise UserError(f"{file}: not an ONNX file: {type(problem).__name__}") from problem
        inputs = {value.name: value.type.tensor_type for value in graph.input}
        if INPUT_NAME not in inputs or inputs.keys() - {INPUT_NAME, ALPHA_NAME}:
            raise UserError(f"{file}: its inputs are {', '.join(inputs) or 'none'}; {INPUT_NAME} is wanted")
        self.bytes = inputs[INPUT_NAME].elem_type == onnx.TensorProto.UINT8
        shape = [dim.dim_value for dim in inputs[INPUT_NAME].shape.dim][1:]
        face = (*shape,) if self.bytes else (*shape[1:], *shape[:1])
        check_crops(crops, file.name, face)
        self.batches = self._batches(crops, ALPHA_NAME in inputs)

    def _batches(self, crops: np.ndarray, alpha: bool) -> Iterator[dict[str, np.ndarray]]:
        alphas = np.linspace(0, 1, len(crops), dtype=np.float32)
        for start in range(0, len(crops), BATCH):
            part = np.ascontiguousarray(crops[start : start + BATCH])
            if not self.bytes:
                part = np.ascontiguousarray((part / np.float32(255)).transpose(0, 3, 1, 2))
            yield {INPUT_NAME: part, **({ALPHA_NAME: alphas[start : start + BATCH]} if alpha else {})}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def check_crops(crops: np.ndarray | None, what: str, face: tuple[int, ...]) -> None:
    """UserError where `crops` are not uint8 faces (N, *face), N >= 1, or hold one value alone: calibration on them
    would give ranges of nothing."""
    if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != face or not len(crops):
        found = f"{crops.dtype} {crops.shape}" if isinstance(crops, np.ndarray) else type(crops).__name__
        raise UserError(f"{what}: calibration takes uint8 faces of shape (N, {', '.join(map(str, face))}), got {found}")
    if crops.min() == crops.max():
        raise UserError(f"{what}: the calibration faces are blank")
