"""Center loss: features are drawn to the mean of their identity."""

import torch
from torch import Tensor, nn


class CenterLoss(nn.Module):
    """Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", 2016, equations 2-4.

    `forward(features (B, D), labels (B,))` gives |feature - centre|^2 / 2, (B,), by the centres as they were;
    then, in training mode, each centre of the batch moves towards its n features by rate * sum(feature -
    centre) / (1 + n). A face with label -1 is unlabelled: its loss is 0, and it moves nothing. Centres are buffers
    without gradient and start at 0. On several processes, call it with gathered features: the centres then stay
    the same everywhere. The paper weighs it .003 beside softmax (its Figure 5).
    """

    centres: Tensor

    def __init__(self, embedding_dim: int, classes: int, rate: float = 0.5) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("centres", torch.zeros(classes, embedding_dim))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        known = (labels >= 0).to(self.centres)
        labels = labels.clamp(min=0)
        apart = (features.to(self.centres.dtype) - self.centres[labels]) * known[:, None]
        if self.training:
            with torch.no_grad():
                moves = torch.zeros_like(self.centres).index_add_(0, labels, apart.detach())
                counts = torch.zeros_like(self.centres[:, 0]).index_add_(0, labels, known)
                self.centres += self.rate * moves / (1 + counts[:, None])
        return apart.square().sum(1) / 2
