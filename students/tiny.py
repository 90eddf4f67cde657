"""The bridge-distillation student (Ge et al. 2019, section III-D, Fig. 2) at any input size.

Ten convolutions (3x3 interleaved with 1x1), three max-pools, two skip connections, global average pooling
and three fully connected layers; the 128-d mimic layer, which is the embedding, sits right before the
identity layer. The paper gives no widths. These put a pool right behind the first convolution, keep all
widths multiples of 16 and add the skips on narrow 1x1 outputs, which is what CPU runtimes run fastest.
"""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from students.student import EMBEDDING_DIM, ConvBNReLU, Student


class Tiny(Student):
    """The student without its identity layer; `p` is free (global average pooling), a multiple of 8."""

    chains: ClassVar = (
        "stem > narrow1, narrow1 narrow2 > wide1 wide2, wide1 > narrow2, wide2 > narrow3, narrow3 narrow4 > wide3 "
        "wide4, wide3 > narrow4, wide4 > top, top > fc1, fc1 > fc2, fc2 > mimic"
    )
    any_size: ClassVar = True

    def __init__(self, input_px: int = 16) -> None:
        super().__init__()
        if input_px % 8:
            raise ValueError(f"input_px must be a multiple of 8, got {input_px}")
        self.input_px = input_px
        self.stem = ConvBNReLU(3, 16, 3)
        self.narrow1 = ConvBNReLU(16, 16, 1)
        self.wide1 = ConvBNReLU(16, 32, 3)
        self.narrow2 = ConvBNReLU(32, 16, 1)
        self.wide2 = ConvBNReLU(16, 32, 3)
        self.narrow3 = ConvBNReLU(32, 32, 1)
        self.wide3 = ConvBNReLU(32, 64, 3)
        self.narrow4 = ConvBNReLU(64, 32, 1)
        self.wide4 = ConvBNReLU(32, 64, 3)
        self.top = ConvBNReLU(64, 128, 1)
        self.fc1 = nn.Linear(128, 128)
        self.fc2 = nn.Linear(128, 128)
        self.mimic = nn.Linear(128, EMBEDDING_DIM)
        self.initialise()

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x * 2 - 1), 2)
        skip = self.narrow1(x)
        x = self.narrow2(self.wide1(skip)) + skip
        x = F.max_pool2d(self.wide2(x), 2)
        skip = self.narrow3(x)
        x = self.narrow4(self.wide3(skip)) + skip
        x = F.max_pool2d(self.wide4(x), 2)
        x = F.adaptive_avg_pool2d(self.top(x), 1).flatten(1)
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return self.mimic(x)
