"""Any frozen embedder in an ONNX file: `onnx:FILE`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faces.errors import UserError
from faces.threads import cores
from teachers.backbones import Backbone

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Onnx(Backbone):
    """RGB in [0, 1], shape (N, 3, px, px), to (N, D), computed by onnxruntime on the CPU; it has no parameters.

    The file's layout (NCHW or NHWC), side and batch are read from its graph: a fixed batch is filled up, and a
    free one that the graph does not really have is taken as 1. mean, std: of RGB in [0, 1], applied here; .5 is
    insightface's convention; `std` 1/255 gives a file 0..255. px: the side where the graph leaves it free;
    colour: the order of the file's channels. Raises UserError where the file is no such embedder, and when it is
    asked for a gradient.
    """

    trainable = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        path: str | Path,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        px: int | None = None,
        colour: str = "rgb",
    ) -> None:
        super().__init__()
        self.path, self.colour = Path(path), colour
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._session = _open(self.path)
        self._read_input(px)
        self._output = self._session.get_outputs()[0].name
        self.embedding_dim = self._probe()

    def _read_input(self, px: int | None) -> None:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _FLOATS or len(inputs[0].shape) != 4:
            found = ", ".join(f"{node.name} {node.type} {node.shape}" for node in inputs)
            raise UserError(f"{self.path} takes {found}; an embedder takes one batch of float images")
        node = inputs[0]
        self._input, self._type = node.name, _FLOATS[node.type]
        # A free size is a name or None.
        batch, *sizes = (size if isinstance(size, int) and size > 0 else None for size in node.shape)
        self.nhwc = sizes[0] != 3 and sizes[2] == 3
        channels, *sides = (sizes[2], *sizes[:2]) if self.nhwc else sizes
        given = {size for size in sides if size is not None}
        if channels not in (3, None) or len(given) > 1:
            raise UserError(f"{self.path} takes images of shape {node.shape[1:]}, not square ones of 3 channels")
        if given and px is not None and given != {px}:
            raise UserError(f"{self.path} takes images of {given.pop()} px, not of px={px}: leave that option out")
        self.input_px = given.pop() if given else px or 112
        self.batch: int | None = batch

    def _probe(self) -> int:
        """The width of the embedding; a free batch that the graph does not take becomes 1."""
        blank = np.zeros((2, 3, self.input_px, self.input_px), np.float32)
        if self.batch is None:
            try:
                return self._embed(blank).shape[1]
            except UserError:
                self.batch = 1
        return self._embed(blank).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            raise UserError(
                f"{self.path} is an ONNX file, frozen only: it cannot be fine-tuned; leave --teacher-method at none, "
                "or choose a teacher whose weights PyTorch reads"
            )
        images = ((x - self.mean) / self.std).float()
        if self.colour == "bgr":
            images = images.flip(1)
        return torch.from_numpy(self._embed(images.detach().cpu().numpy())).to(x)

    def _embed(self, images: np.ndarray) -> np.ndarray:
        """(N, 3, px, px) float32, mean and std applied, to (N, D) float32."""
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1) if self.nhwc else images, self._type)
        step = self.batch or max(1, len(images))
        parts = []
        for start in range(0, len(images), step):
            part = images[start : start + step]
            count = len(part)
            if self.batch is not None and count < step:
                part = np.concatenate([part, np.repeat(part[-1:], step - count, 0)])
            parts.append(self._run(part)[:count])
        return np.concatenate(parts) if parts else np.empty((0, self.embedding_dim), np.float32)

    def _run(self, part: np.ndarray) -> np.ndarray:
        try:
            output = self._session.run([self._output], {self._input: part})[0]
        # onnxruntime's own exceptions have no common base of their own.
        except Exception as problem:
            raise UserError(f"{self.path}: onnxruntime failed on {part.shape}: {_first_line(problem)}") from problem
        output = np.asarray(output)
        # One axis but the first may be longer than 1: (N, D), or (N, D, 1, 1) of a head without a flatten.
        count, *rest = output.shape or (0,)
        if count != len(part) or output.size != count * max(rest, default=0) or not output.size:
            raise UserError(f"{self.path} made {output.shape} of {part.shape}, not one vector an image")
        return output.reshape(len(part), -1).astype(np.float32)

    def count_parameters(self) -> int:
        """The floating-point numbers that the file stores."""
        import onnx

        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        graph = onnx.load(str(self.path), load_external_data=False).graph
        return sum(int(np.prod(one.dims)) for one in graph.initializer if one.data_type in floats)


def _open(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("an ONNX teacher needs a package: pip install onnxruntime") from None
    if not path.is_file():
        raise UserError(f"no ONNX file {path}; an ONNX teacher is named onnx:FILE, options behind a '?'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as problem:
        raise UserError(f"{path} is no ONNX file that onnxruntime can run: {_first_line(problem)}") from problem


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
