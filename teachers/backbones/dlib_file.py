"""The reader of dlib's serialised networks, as far as the face-recognition ResNet needs it.

The format (dlib, `serialize.h` and `dnn/layers.h`): an integer is one byte (low four bits: how many bytes
follow; high bit: negative) and then its magnitude, little endian; a float is two such integers, mantissa
and binary exponent; a string is its length and its bytes; a tensor is the integer 2, its four sizes and raw
little-endian float32. Layers follow in forward order, each led by its name, with a few tens of bytes of
bookkeeping between two.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faces.errors import UserError

# Bookkeeping between two layers of the published file never takes more.
MAX_GAP = 400
# A cleaned network ends with three tensors without elements, the last layer's cached values.
_END = 3 * bytes([1, 2, 1, 0, 1, 0, 1, 0, 1, 0])


@dataclass(frozen=True)
class Convolution:
    """weight (out, in, k, k), bias (out,), and the affine layer behind it: gamma and beta (out,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    stride: int
    padding: int


@dataclass(frozen=True)
class Network:
    """input_mean: RGB on the 0..255 scale; projection: (inputs, outputs) of the last layer, without bias."""

    input_mean: tuple[float, float, float]
    convolutions: list[Convolution]
    projection: NDArray[np.float32]


class _Reader:
    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.at = 0
        try:
            self.data = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    def fail(self, what: str) -> UserError:
        return UserError(f"{self.path} is not dlib's face-recognition network: {what} at byte {self.at}")

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise self.fail(f"the file ends ({len(self.data)} bytes) inside a value")
        self.at += count
        return self.data[self.at - count : self.at]

    def integer(self) -> int:
        control = self.take(1)[0]
        if not 1 <= (control & 0x0F) <= 8 or control & 0x70:
            raise self.fail("no integer")
        value = int.from_bytes(self.take(control & 0x0F), "little")
        return -value if control & 0x80 else value

    def integers(self, count: int) -> list[int]:
        return [self.integer() for _ in range(count)]

    def real(self) -> float:
        mantissa, exponent = self.integers(2)
        if not -1100 < exponent < 1100:
            raise self.fail("no finite number")
        return mantissa * 2.0**exponent

    def expect(self, wanted: list[int], what: str) -> None:
        got = self.integers(len(wanted))
        if got != wanted:
            raise self.fail(f"{what} {got} instead of {wanted}")

    def seek(self, layer: str) -> None:
        """Go behind the next layer of this name, which must be near."""
        marker = bytes([1, len(layer)]) + layer.encode()
        found = self.data.find(marker, self.at, self.at + MAX_GAP)
        if found < 0:
            raise self.fail(f"no layer {layer!r}")
        self.at = found + len(marker)

    def tensor(self, sizes: list[int]) -> NDArray[np.float32]:
        self.expect([2, *sizes], "a tensor of sizes")
        count = int(np.prod(sizes))
        values = np.frombuffer(self.take(4 * count), "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise self.fail("a weight that is not finite")
        return values


def _convolution(reader: _Reader, inputs: int, outputs: int, kernel: int) -> Convolution:
    count = inputs * outputs * kernel * kernel
    reader.seek("con_4")
    values = reader.tensor([count + outputs, 1, 1, 1])
    reader.expect([outputs, kernel, kernel], "a convolution of (outputs, height, width)")
    stride, stride_x, padding, padding_x = reader.integers(4)
    if stride != stride_x or padding != padding_x:
        raise reader.fail("a convolution that differs between rows and columns")
    reader.seek("affine_")
    affine = reader.tensor([2 * outputs, 1, 1, 1])
    return Convolution(
        weight=values[:count].reshape(outputs, inputs, kernel, kernel),
        bias=values[count:],
        gamma=affine[:outputs],
        beta=affine[outputs:],
        stride=stride,
        padding=padding,
    )


def read_network(path: str | Path, convolutions: list[tuple[int, int, int]], projection: tuple[int, int]) -> Network:
    """Read a `.dat` whose convolutions are (inputs, outputs, kernel) and whose last layer is `projection`.

    Raises UserError where the file cannot be read, ends early or holds another network.
    """
    reader = _Reader(path)
    reader.seek("loss_metric_2")
    # The flags of the nested network lie between the loss and the input layer.
    reader.seek("input_rgb_image_sized")
    mean = (reader.real(), reader.real(), reader.real())
    reader.expect([150, 150], "an input of")
    layers = [_convolution(reader, *shape) for shape in convolutions]
    inputs, outputs = projection
    reader.seek("fc_2")
    reader.expect([outputs, inputs], "a last layer of (outputs, inputs)")
    matrix = reader.tensor([inputs, outputs, 1, 1]).reshape(inputs, outputs)
    rest = reader.data[reader.at :]
    if len(rest) > MAX_GAP or not rest.endswith(_END):
        raise reader.fail("the file does not end behind the last layer")
    return Network(mean, layers, matrix)
