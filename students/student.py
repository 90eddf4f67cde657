"""What every student is made of, and how large it is."""

from typing import ClassVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

EMBEDDING_DIM = 128


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm and ReLU; kernels are padded so that the size stays, but for `whole`: one kernel a
    channel, as large as its map, which becomes one number."""

    def __init__(self, inputs: int, outputs: int, kernel: int, whole: bool = False) -> None:
        padding, groups = (0, inputs) if whole else (kernel // 2, 1)
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=padding, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Student(nn.Module):
    """RGB faces in [0, 1], (N, 3, p, p), to features (N, 128), not normalised: compare two with the cosine.

    `input_px` is the p that it is trained for; `mimic` gives the feature.
    """

    chains: ClassVar[str]
    """`writers > readers, ...`: layers, and those that alone read their channels; channels that meet in a sum have
    their writers named together. Between them a positive factor for each channel may be moved (`export.qat`)."""
    any_size: ClassVar[bool]
    """Does it take other sizes than `input_px`?"""
    input_px: int
    mimic: nn.Linear

    def initialise(self) -> None:
        """Xavier weights, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


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
