"""IResNet, the residual network of ArcFace (Deng et al. 2019) and of most published face-recognition weights.

Duta et al., "Improved Residual Networks for Image and Video Recognition", 2020, as insightface uses it for
faces. Names in the state dict are those of insightface's `backbone.pth`, so that such files load as they are.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from teachers.backbones import Backbone

DEPTHS = {"iresnet18": (2, 2, 2, 2), "iresnet50": (3, 4, 14, 3), "iresnet100": (3, 13, 30, 3)}


class Block(nn.Module):
    """shortcut + bn3(conv2(prelu(bn2(conv1(bn1(x)))))): no activation behind the sum; conv2 may stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + shortcut


class IResNet(Backbone):
    """RGB in [0, 1], shape (N, 3, 112, 112), to (N, 512); compare two with the cosine.

    The input is mapped to [-1, 1] inside. `widths` and `embedding_dim` shrink the network for tests; published
    weights fit the defaults. The last batch norm's weight stays at 1 (it has no gradient), as published.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        embedding_dim: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_px, self.embedding_dim = 112, embedding_dim
        self.lora_targets = {"twin": r"^layer[34]\.\d+\.conv[12]$", "single": r"^fc$"}
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        before = (widths[0], *widths[:-1])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(Block(inputs, outputs, 2), *(Block(outputs, outputs, 1) for _ in range(depth - 1)))
            for inputs, outputs, depth in zip(before, widths, depths, strict=True)
        )
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.dropout = nn.Dropout(dropout)
        # Four halvings of 112 leave 7 x 7.
        self.fc = nn.Linear(widths[-1] * 49, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # The published N(0, .1) overflows in evaluation mode before the batch norms have seen a face.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x * 2 - 1)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        # Flattened as (channel, row, column), whatever the memory format.
        return self.features(self.fc(self.dropout(self.bn2(x).flatten(1))))
