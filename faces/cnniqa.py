"""CNN-IQA (Kang et al., CVPR 2014): the quality of grey 32 px patches, fully convolutional over an image."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faces.errors import UserError

PATCH_PX = 32
_KERNEL = 7
_CHUNK = 4
"""Images at once on a CPU: with more, fetching fresh memory for the feature maps takes half of the time."""


class CNNIQA(nn.Module):
    """Convolution 7x7x50, global max and min pooling over a 32 px patch, fully connected 800, 800, 1.

    Takes (N, 3, H, W) RGB or (N, 1, H, W) grey in [0, 1], both sides >= 32; returns (N,) float32: the mean score
    of the patches at every `stride` pixels. 32 is the published, non-overlapping choice; overlapping patches share
    their convolution. The score is unbounded and its polarity is that of the training targets.

    constant: what is added to the local deviation, in grey levels of [0, 1]. The published LIVE weights need 1.
    The paper normalises the image and then cuts patches, as here; the LIVE weights' code cuts first, which differs
    at patch borders only.
    """

    def __init__(self, stride: int = 16, constant: float = 1.0) -> None:
        super().__init__()
        self.stride, self.constant = stride, constant
        self.conv1 = nn.Conv2d(1, 50, _KERNEL)
        self.fc1 = nn.Linear(100, 800)
        self.fc2 = nn.Linear(800, 800)
        self.fc3 = nn.Linear(800, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(_CHUNK if x.device.type == "cpu" else 256)
        return torch.cat([self.patch_scores(part).mean((1, 2)) for part in parts])

    def patch_scores(self, x: Tensor) -> Tensor:
        """(N, rows, columns): the score of the patch whose corner is at (row, column) x stride."""
        if min(x.shape[-2:]) < PATCH_PX:
            raise ValueError(f"CNN-IQA needs images of {PATCH_PX} px or more, not {tuple(x.shape[-2:])}")
        h = self.conv1(local_normalise(grey(x), self.constant))
        # Rows first, then columns: 13 times fewer comparisons than over each window.
        side = PATCH_PX - _KERNEL + 1
        rows = h.unfold(2, side, self.stride)
        highest = rows.amax(-1).unfold(3, side, self.stride).amax(-1)
        lowest = rows.amin(-1).unfold(3, side, self.stride).amin(-1)
        pooled = torch.cat([highest, lowest], 1)
        return self._regress(pooled.permute(0, 2, 3, 1))

    def patches(self, x: Tensor) -> Tensor:
        """(M,) scores of (M, 1, 32, 32) patches of normalised images: what training sees.

        Only the place of a maximum or minimum has a gradient, so the convolution runs without one and is repeated
        at those places alone: the same gradient in a third of the time.
        """
        with torch.no_grad():
            h = self.conv1(x)
            at = torch.cat([h.flatten(2).argmax(2), h.flatten(2).argmin(2)], 1)
        windows = x[:, 0].unfold(1, _KERNEL, 1).unfold(2, _KERNEL, 1)
        width = h.shape[3]
        chosen = windows[torch.arange(len(x), device=x.device)[:, None], at // width, at % width]
        chosen = chosen.reshape(len(x), 2, -1, _KERNEL * _KERNEL)
        bias = self.conv1.bias
        assert bias is not None, "made with one"
        pooled = (chosen * self.conv1.weight.flatten(1)).sum(3) + bias
        return self._regress(pooled.flatten(1))

    def _regress(self, pooled: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.fc1(pooled)))
        return self.fc3(F.relu(self.fc2(hidden)))[..., 0]


def grey(x: Tensor) -> Tensor:
    """(N, 1, H, W) luminance (ITU-R BT.601, as Pillow's mode L) of RGB; grey passes."""
    if x.shape[1] == 1:
        return x
    return torch.einsum("c,nchw->nhw", x.new_tensor([0.299, 0.587, 0.114]), x)[:, None]


def local_normalise(x: Tensor, constant: float) -> Tensor:
    """(x - mean) / (deviation + constant) over 3x3 neighbours, borders repeated (Kang et al., eq. 1)."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    mean = F.avg_pool2d(padded, 3, 1)
    # Of the differences to a flat level, else float32 cancels: a deviation is some thousandths of a bright level.
    level = x.mean((2, 3), keepdim=True)
    square = F.avg_pool2d((padded - level) ** 2, 3, 1) - (mean - level) ** 2
    return (x - mean) / (square.clamp(min=0).sqrt() + constant)


def load_plain(path: str | Path) -> CNNIQA:
    """CNN-IQA from a torch file of its bare state dict, as the LIVE weights are published; UserError on others.

    Such a file does not tell whether a high score is good: DMOS weights are lower-is-better, MOS ones are not.
    """
    state = read_tensors(path)
    network = CNNIQA(stride=PATCH_PX // 2, constant=1.0)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != wanted:
        wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        raise UserError(f"{path} holds no grey CNN-IQA (differing: {', '.join(wrong[:4])})")
    if not all(value.isfinite().all() for value in state.values()):
        raise UserError(f"{path} holds weights that are not finite")
    network.load_state_dict(state)
    return network


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a torch file, `weights_only`; UserError where it cannot be read or holds anything else."""
    if not Path(path).is_file():
        raise UserError(f"no weights file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        # torch.load has no error of its own: a cut or foreign file raises about anything.
        reason = str(problem).strip().splitlines()[0][:100] if str(problem).strip() else type(problem).__name__
        raise UserError(f"{path} is no torch file of tensors, or it is cut short ({reason})") from problem
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict (names to tensors)")
    return state
