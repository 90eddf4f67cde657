"""MobileFaceNet: Chen et al., "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification", 2018."""

from collections.abc import Sequence

from torch import Tensor, nn

from teachers.backbones import Backbone

# Table 1: (expansion t, channels c, repetitions n, stride s of the first) of each group of bottlenecks.
BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and PReLU; larger kernels are padded, so that only a stride changes the size."""
    return nn.Sequential(*_linear(inputs, outputs, kernel, stride, groups), nn.PReLU(outputs))


def _linear(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """The same without an activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Bottleneck(nn.Module):
    """Widen by 1x1, 3x3 depthwise, narrow by a linear 1x1; the input is added where the shape is the same."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.widen = _conv(inputs, wide)
        self.depthwise = _conv(wide, wide, 3, stride, groups=wide)
        self.narrow = _linear(wide, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.residual else y


class MobileFaceNet(Backbone):
    """RGB in [0, 1], shape (N, 3, 112, 112), to (N, 128); compare two with the cosine.

    The input is mapped to [-1, 1] inside. The head is the paper's global depthwise convolution, a 7x7 kernel of
    its own for each of the 512 channels. `bottlenecks` and `last` shorten the network for tests.
    """

    def __init__(
        self,
        bottlenecks: Sequence[tuple[int, int, int, int]] = BOTTLENECKS,
        width: int = 64,
        last: int = 512,
        embedding_dim: int = 128,
    ) -> None:
        super().__init__()
        self.input_px, self.embedding_dim = 112, embedding_dim
        # The depthwise kernels are grouped and small; the pointwise ones hold the weights.
        self.lora_targets = {"twin": r"^bottlenecks\.\d+\.(widen|narrow)\.0$", "single": r"^embed\.0$"}
        self.stem = _conv(3, width, 3, 2)
        self.stem_depthwise = _conv(width, width, 3, groups=width)
        blocks, inputs = [], width
        for expansion, outputs, count, stride in bottlenecks:
            for index in range(count):
                blocks.append(Bottleneck(inputs, outputs, expansion, stride if index == 0 else 1))
                inputs = outputs
        self.bottlenecks = nn.Sequential(*blocks)
        self.top = _conv(inputs, last)
        self.pool = nn.Sequential(nn.Conv2d(last, last, 7, groups=last, bias=False), nn.BatchNorm2d(last))
        self.embed = _linear(last, embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_depthwise(self.stem(x * 2 - 1))
        return self.embed(self.pool(self.top(self.bottlenecks(x)))).flatten(1)
