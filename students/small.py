"""A student of ours that keeps the face's pixels for longer than the paper's: at 16 px for 5.7 times the
multiply-accumulates, at 32 px for 1.6 times.

The paper's network (`students.tiny`) pools right behind its first convolution and ends in a global average: at 16 px
most of it sees 4 x 4 places, and which of them a feature came from is lost. Here the first stage works on the full 16 x
16, each stage adds to what it was given (1x1 to few channels, 3x3 back), and the last map is read by one kernel a
channel as large as itself, so that aligned faces keep their places (Chen et al. 2018, MobileFaceNets, section 3).
"""

import itertools
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from students.student import EMBEDDING_DIM, ConvBNReLU, Student

_STAGES = ((32, 16, 2), (64, 32, 3), (96, 32, 2))
"""Channels, those of the narrow layers, and how many blocks, at 16 x 16, 8 x 8 and 4 x 4."""
_TOP = 192


class Residual(nn.Module):
    """What it is given, and what 1x1 to few channels and 3x3 back make of it."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.narrow, self.wide = ConvBNReLU(width, narrow, 1), ConvBNReLU(narrow, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.wide(self.narrow(x))


def _chains() -> Iterator[str]:
    """Whatever a stage adds to its channels is scaled with them, and read with them."""
    before, behind = ("stem", "widen.0", "widen.1"), ("widen.0", "widen.1", "top")
    for i, (_, _, blocks) in enumerate(_STAGES):
        inside = [f"stages.{i}.{block}" for block in range(blocks)]
        writers = " ".join((before[i], *(f"{one}.wide" for one in inside)))
        yield f"{writers} > {' '.join((*(f'{one}.narrow' for one in inside), behind[i]))}"
        yield from (f"{one}.narrow > {one}.wide" for one in inside)
    yield from ("top > whole", "whole > mimic")


class Small(Student):
    """Takes faces of `input_px` = 16 alone, or 32: the first convolution's output is then pooled to 16 x 16."""

    chains: ClassVar = ", ".join(_chains())
    any_size: ClassVar = False

    def __init__(self, input_px: int = 16) -> None:
        super().__init__()
        if input_px not in (16, 32):
            raise ValueError(f"input_px must be 16 or 32, got {input_px}")
        self.input_px = input_px
        widths = [width for width, _, _ in _STAGES]
        self.stem = ConvBNReLU(3, widths[0], 3)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Residual(width, narrow) for _ in range(blocks))) for width, narrow, blocks in _STAGES
        )
        self.widen = nn.ModuleList(ConvBNReLU(*pair, 1) for pair in itertools.pairwise(widths))
        self.top = ConvBNReLU(widths[-1], _TOP, 1)
        self.whole = ConvBNReLU(_TOP, _TOP, 4, whole=True)
        self.mimic = nn.Linear(_TOP, EMBEDDING_DIM)
        self.initialise()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x * 2 - 1)
        x = F.max_pool2d(x, 2) if self.input_px == 32 else x
        x = self.stages[0](x)
        for widen, stage in zip(self.widen, self.stages[1:], strict=True):
            x = stage(widen(F.max_pool2d(x, 2)))
        return self.mimic(self.whole(self.top(x)).flatten(1))
