"""TFLite, fp32, fp16 or full-integer int8, through litert-torch and ai-edge-quantizer: no TensorFlow needed."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.quantize import BATCH, check_crops
from export.quiet import quiet
from export.tracing import INPUT_NAME, OUTPUT_NAME, at_rest
from faces.errors import UserError
from faces.files import whole

_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Quantisation:
    """An integer input q stands for (q - zero_point) * scale in [0, 1]."""

    dtype: str
    scale: float
    zero_point: int


class _ChannelsLast(nn.Module):
    # The argument's name and the key of the result become the names in the file's signature.
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, face: Tensor) -> dict[str, Tensor]:
        return {OUTPUT_NAME: self.model(face.permute(0, 3, 1, 2))}


def export_tflite(
    model: nn.Module, path: str | Path, input_px: int, precision: str = "fp32", crops: np.ndarray | None = None
) -> Quantisation | None:
    """Write `model` as a TFLite file: `face`, float32 RGB in [0, 1] (1, p, p, 3), to `embedding`, float32 (1, D).

    fp16: weights are stored in half precision, arithmetic is the runtime's choice; inputs are as in fp32. int8:
    weights are int8 with a scale for each output channel, activations int8 with the ranges of `crops`, (N, p, p, 3)
    uint8 RGB, N >= 1, every operator is an integer one, and `face` is uint8 with scale 1/255 and zero point 0: the
    camera's bytes; what the file itself says of its input is returned (None for the others). The quantiser's own
    calibration is a moving average that forgets the widest ranges; ours keeps the least and greatest value.

    The stored batch is 1 and every interpreter can resize it (`Interpreter.resize_tensor_input`):
    litert-torch 0.10 refuses a symbolic batch in plain arithmetic such as `x * 2`. A graph that fixes the
    batch elsewhere (a reshape to constant sizes) would fail when resized; the parity gate runs several batch
    sizes to find that. The model's training modes are left as they were. Raises UserError where litert-torch
    is missing or cannot convert the model, and where the crops do not fit.
    """
    if precision not in ("fp32", "fp16", "int8"):
        raise ValueError(f"precision {precision!r}, known: fp32, fp16, int8")
    if precision == "int8":
        check_crops(crops, Path(path).name, (input_px, input_px, 3))
    with at_rest(model) as resting, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import litert_torch
        except ImportError as problem:
            raise UserError(
                f"a TFLite file needs litert-torch ({problem}): pip install 'litert-torch>=0.10,<0.11'"
            ) from None
        sample = torch.zeros(1, input_px, input_px, 3)
        with whole(path) as temporary:
            # The converter raises whatever its four layers raise (torch.export, jax, MLIR, flatbuffers), and the
            # quantiser its own.
            try:
                converted = litert_torch.convert(_ChannelsLast(resting).eval(), sample_kwargs={INPUT_NAME: sample})
                converted.export(str(temporary))
                if precision == "fp16":
                    temporary.write_bytes(_half(temporary.read_bytes()))
                elif crops is not None and precision == "int8":
                    temporary.write_bytes(_fed_with_bytes(_integers(temporary.read_bytes(), crops)))
            except Exception as problem:
                reason = str(problem).strip().split("\n")[0] or type(problem).__name__
                raise UserError(f"{type(model).__name__} cannot be converted to TFLite: {reason}") from problem
            return _quantisation(temporary) if precision == "int8" else None


def _half(fp32: bytes) -> bytes:
    from ai_edge_quantizer import qtyping, quantizer

    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    how = qtyping.OpQuantizationConfig(weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT)
    work = quantizer.Quantizer(fp32)
    # The operators that have weights.
    for operation in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"):
        work.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName(operation),
            op_config=how,
            algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
        )
    return bytes(work.quantize().quantized_model)


def _integers(fp32: bytes, crops: np.ndarray) -> bytes:
    """int8 inside and at the input (scale 1/255, zero point -128), float32 at the output."""
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer import recipe as recipes
    from ai_edge_quantizer.utils import qsv_utils

    recipe = recipes.static_wi8_ai8()
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe)
    calibration = calibrator.Calibrator(fp32, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    batches = [{INPUT_NAME: crops[start : start + BATCH] / np.float32(255)} for start in range(0, len(crops), BATCH)]
    calibration.calibrate({_SIGNATURE: batches}, manager)
    ranges: dict[str, Any] = calibration.get_model_qsvs()
    # Bytes are 0 to 255, whatever the brightest calibration face holds.
    face = ranges[f"{_SIGNATURE}_{INPUT_NAME}"]
    face["min"], face["max"] = np.zeros_like(face["min"]), np.ones_like(face["max"])
    work = quantizer.Quantizer(fp32, recipe)
    work.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.OUTPUT,
        algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE,
    )
    return bytes(work.quantize(ranges).quantized_model)


def _fed_with_bytes(int8: bytes) -> bytes:
    """The same file with an operator in front that takes bytes: uint8 zero point 0 to int8 zero point -128."""
    from ai_edge_litert.tools import flatbuffer_utils as flat

    schema = flat.schema_fb
    model = flat.read_model_from_bytearray(bytearray(int8))
    graph, code = model.subgraphs[0], schema.OperatorCodeT()
    (old,) = graph.inputs
    signed = graph.tensors[old]
    camera, form = schema.TensorT(), schema.QuantizationParametersT()
    form.scale, form.zeroPoint = signed.quantization.scale, np.zeros(1, np.int64)
    camera.name, signed.name = signed.name, signed.name + b"_signed"
    camera.shape, camera.shapeSignature = signed.shape, signed.shapeSignature
    camera.type, camera.quantization = schema.TensorType.UINT8, form
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    model.operatorCodes.append(code)
    quantise = schema.OperatorT()
    quantise.opcodeIndex = len(model.operatorCodes) - 1
    quantise.builtinOptionsType, quantise.builtinOptions = (
        schema.BuiltinOptions.QuantizeOptions,
        (schema.QuantizeOptionsT()),
    )
    graph.tensors.append(camera)
    new = len(graph.tensors) - 1
    quantise.inputs, quantise.outputs = np.array([new], np.int32), np.array([old], np.int32)
    graph.operators.insert(0, quantise)
    graph.inputs = np.array([new], np.int32)
    for signature in model.signatureDefs:
        for entry in signature.inputs:
            entry.tensorIndex = new
    return bytes(flat.convert_object_to_bytearray(model))


def _quantisation(file: Path) -> Quantisation:
    """What the file says of its input. UserError where that is not the contract's."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=1)
    details: Sequence[dict[str, Any]] = interpreter.get_input_details()
    scale, zero_point = details[0]["quantization"]
    found = Quantisation(np.dtype(details[0]["dtype"]).name, float(scale), int(zero_point))
    if found.dtype != "uint8" or found.zero_point != 0 or abs(found.scale - 1 / 255) > 1e-6:
        raise UserError(f"the quantiser gave an input of {found}, not the camera's bytes")
    return found
