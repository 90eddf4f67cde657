"""TFLite, fp32, through litert-torch: no TensorFlow needed."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from export.quiet import quiet
from export.tracing import INPUT_NAME, OUTPUT_NAME, at_rest
from faces.errors import UserError
from faces.files import whole


class _ChannelsLast(nn.Module):
    # The argument's name and the key of the result become the names in the file's signature.
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, face: Tensor) -> dict[str, Tensor]:
        return {OUTPUT_NAME: self.model(face.permute(0, 3, 1, 2))}


def export_tflite(model: nn.Module, path: str | Path, input_px: int) -> None:
    """Write `model` as a TFLite file: `face`, float32 RGB in [0, 1] (1, p, p, 3), to `embedding` (1, D).

    The stored batch is 1 and every interpreter can resize it (`Interpreter.resize_tensor_input`):
    litert-torch 0.10 refuses a symbolic batch in plain arithmetic such as `x * 2`. A graph that fixes the
    batch elsewhere (a reshape to constant sizes) would fail when resized; the parity gate runs several batch
    sizes to find that. The model's training modes are left as they were. Raises UserError where litert-torch
    is missing or cannot convert the model.
    """
    with at_rest(model) as resting, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import litert_torch
        except ImportError as problem:
            raise UserError(
                f"a TFLite file needs litert-torch ({problem}): pip install 'litert-torch>=0.10,<0.11'"
            ) from None
        sample = torch.zeros(1, input_px, input_px, 3)
        try:
            converted = litert_torch.convert(_ChannelsLast(resting).eval(), sample_kwargs={INPUT_NAME: sample})
        # The converter raises whatever its four layers raise (torch.export, jax, MLIR, flatbuffers).
        except Exception as problem:
            reason = str(problem).strip().split("\n")[0] or type(problem).__name__
            raise UserError(f"{type(model).__name__} cannot be converted to TFLite: {reason}") from problem
        with whole(path) as temporary:
            converted.export(str(temporary))
