"""Which files an export writes: format and precision, and the name that says both."""

from collections.abc import Sequence
from dataclasses import dataclass

from faces.errors import UserError

PRECISIONS = ("fp32", "fp16", "int8")
ENGINES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Engine formats and the modules that build them."""
FORMATS = ("onnx", "tflite", *ENGINES)
# The consumers of int8 ONNX disagree: CPU runtimes are fast with unsigned activations, TensorRT takes symmetric
# signed ones alone.
CPU, TENSORRT = "cpu", "tensorrt"


@dataclass(frozen=True)
class Rounding:
    """The steps of an int8 file. weights: so many on each side of zero, a scale for each row; the half one is the value
    that bytes have more below zero than above. symmetric: activations have 127 on each side of zero, else 256 values
    over their range. outputs: what a layer gives is rounded even where no product reads it (a sum)."""

    weights: float = 127
    symmetric: bool = False
    outputs: bool = True


@dataclass(frozen=True)
class Target:
    """One file to write. consumer: of an int8 ONNX file, `cpu` or `tensorrt`."""

    format: str
    precision: str
    consumer: str | None = None

    def file(self, name: str) -> str:
        """`student.onnx`, `student-fp16.tflite`, `student-int8-cpu.onnx`, `student-fp16.tensorrt-rtx.engine`."""
        if self.format in ENGINES:
            return f"{name}-{self.precision}.{self.format}.engine"
        words = [name, *([] if self.precision == "fp32" else [self.precision])]
        return "-".join([*words, *([self.consumer] if self.consumer else [])]) + f".{self.format}"

    @property
    def source(self) -> "Target | None":
        """The ONNX file that an engine is built from; None for the other formats."""
        if self.format not in ENGINES:
            return None
        return Target("onnx", self.precision, TENSORRT if self.precision == "int8" else None)

    def rounding(self, unsigned: bool = False) -> Rounding:
        """How an int8 file rounds; `unsigned`: a CPU's with unsigned weights (`export.quantize`)."""
        if self.consumer == CPU:
            return Rounding(weights=127.5 if unsigned else 64)
        return Rounding(symmetric=True, outputs=False) if self.consumer == TENSORRT else Rounding()


def targets(formats: Sequence[str], precisions: Sequence[str]) -> list[Target]:
    """Every file that the formats and precisions ask for, the ONNX files that engines are built from among them, in
    the order in which they can be made. UserError on an unknown format or precision."""
    for kind, asked, known in (("format", formats, FORMATS), ("precision", precisions, PRECISIONS)):
        if unknown := [one for one in asked if one not in known]:
            raise UserError(f"unknown {kind} {unknown[0]!r}. Known: {', '.join(known)}")
    found: dict[Target, None] = {}
    for format in (one for one in FORMATS if one in formats):
        for precision in (one for one in PRECISIONS if one in precisions):
            two = (CPU, TENSORRT) if (format, precision) == ("onnx", "int8") else (None,)
            for target in (Target(format, precision, consumer) for consumer in two):
                for one in (target.source, target):
                    if one is not None:
                        found[one] = None
    return list(found)
