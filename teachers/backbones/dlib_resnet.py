"""dlib's face-recognition ResNet-29, read from its `.dat` file into torch.

Source: dlib, `dnn_face_recognition_ex.cpp` (the architecture) and its serialisation code (the file format);
weights `dlib_face_recognition_resnet_model_v1.dat`, 99.38% on LFW as published.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faces.errors import UserError
from teachers.backbones import Backbone
from teachers.backbones.dlib_file import Convolution, read_network

# (channels, halves the size) of the residual blocks, in forward order; each has two 3x3 convolutions.
BLOCKS = [(32, False)] * 3 + [(64, True)] + [(64, False)] * 3 + [(128, True)] + [(128, False)] * 2
BLOCKS += [(256, True)] + [(256, False)] * 2 + [(256, True)]


def _pad_to(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Zeros after the last channel, row and column, as dlib's `add_prev` treats tensors of unequal shape."""
    missing = (0, width - x.shape[3], 0, height - x.shape[2], 0, channels - x.shape[1])
    return F.pad(x, missing) if any(missing) else x


class Block(nn.Module):
    """relu(conv3x3(relu(conv3x3(x))) + shortcut); a down block strides by 2, its shortcut is pooled."""

    def __init__(self, inputs: int, outputs: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2 if down else 1, 0 if down else 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv2(F.relu(self.conv1(x), inplace=True))
        shortcut = F.avg_pool2d(x, 2, 2) if self.down else x
        shape = tuple(max(a, b) for a, b in zip(main.shape[1:], shortcut.shape[1:], strict=True))
        return F.relu(_pad_to(main, *shape) + _pad_to(shortcut, *shape), inplace=True)


class DlibResNet(Backbone):
    """RGB in [0, 1], shape (N, 3, 150, 150), to (N, 128); compare two with the Euclidean distance.

    The affine layers and the input's mean and scale are folded into the convolutions when a file is read
    (exact: the first convolution has no padding), so the module is convolutions, pools and additions only.
    `blocks` shortens the network for tests; a `.dat` file fits the default only. Adapters go to every 3x3
    convolution of the last two stages.
    """

    def __init__(self, blocks: list[tuple[int, bool]] = BLOCKS) -> None:
        super().__init__()
        self.input_px, self.embedding_dim = 150, 128
        last = [str(i) for i, (width, _) in enumerate(blocks) if width >= blocks[-1][0] // 2]
        self.lora_targets = {"twin": rf"^blocks\.({'|'.join(last)})\.conv[12]$", "single": "^$"}
        self.stem = nn.Conv2d(3, 32, 7, 2)
        widths = [32, *(width for width, _ in blocks)]
        self.blocks = nn.Sequential(
            *(Block(inputs, outputs, down) for inputs, (outputs, down) in zip(widths[:-1], blocks, strict=True))
        )
        self.fc = nn.Linear(widths[-1], self.embedding_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x), inplace=True), 3, 2)
        return self.fc(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))

    def convolutions(self) -> list[nn.Conv2d]:
        """All 29 in forward order."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)]

    def load_dat(self, path: str | Path) -> None:
        """Read dlib's `.dat`; raises UserError where the file is cut short or holds another network."""
        layers = self.convolutions()
        shapes = [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in layers]
        network = read_network(path, shapes, (self.fc.in_features, self.fc.out_features))
        for index, (layer, stored) in enumerate(zip(layers, network.convolutions, strict=True)):
            if (stored.stride, stored.padding) != (layer.stride[0], layer.padding[0]):
                raise UserError(
                    f"{path}: convolution {index} has stride {stored.stride} and padding {stored.padding}, "
                    f"not {layer.stride[0]} and {layer.padding[0]}: it is another network"
                )
        with torch.no_grad():
            for layer, stored in zip(layers, network.convolutions, strict=True):
                weight, bias = _fold(stored)
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)  # type: ignore[union-attr]
            # dlib's input layer is (255 x - mean) / 256 for our x in [0, 1].
            mean = torch.tensor(network.input_mean, dtype=torch.float64).view(1, 3, 1, 1)
            weight = self.stem.weight.double()
            self.stem.bias -= (weight * mean).sum((1, 2, 3)) / 256  # type: ignore[operator]
            self.stem.weight.copy_(weight * (255 / 256))
            self.fc.weight.copy_(torch.from_numpy(network.projection).T)


def _fold(stored: Convolution) -> tuple[Tensor, Tensor]:
    """gamma * (W x + b) + beta as one convolution, computed in float64."""
    gamma = torch.from_numpy(stored.gamma).double()
    weight = torch.from_numpy(stored.weight).double() * gamma.view(-1, 1, 1, 1)
    bias = torch.from_numpy(stored.bias).double() * gamma + torch.from_numpy(stored.beta).double()
    return weight, bias
