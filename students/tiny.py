"""The bridge-distillation student (Ge et al. 2019, section III-D, Fig. 2) at any input size.

Ten convolutions (3x3 interleaved with 1x1), three max-pools, two skip connections, global average pooling
and three fully connected layers; the 128-d mimic layer, which is the embedding, sits right before the
identity layer. The paper gives no widths. These put a pool right behind the first convolution, keep all
widths multiples of 16 and add the skips on narrow 1x1 outputs, which is what CPU runtimes run fastest.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

EMBEDDING_DIM = 128


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm and ReLU; 3x3 kernels are padded, so the size stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Tiny(nn.Module):
    """The student without its identity layer: RGB faces in [0, 1], shape (N, 3, p, p), to (N, 128) features.

    `p` is free (global average pooling), a multiple of 8; `input_px` names the size it is trained for.
    The feature is not normalised; compare two with the cosine.
    """

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
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters (batch-norm running statistics are not among them)."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_px: int) -> int:
    """Multiply-accumulates of one RGB face of `input_px` (a multiply and an add count as one; no additions)."""
    training = model.training
    parameter = next(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, input_px, input_px, device=parameter.device))
    model.train(training)
    return counter.get_total_flops() // 2
