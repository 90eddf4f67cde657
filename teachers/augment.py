"""What training does to a face before the teacher sees it.

Every random number belongs to (seed, epoch, face): two processes that share a batch, or a resumed run, draw what
one process would have drawn. Images are (N, 3, S, S) float RGB in [0, 1]; `draws` are `keyed_draws`.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from faces.degrade import jpeg

DRAWS = 24
"""Uniform numbers a face and stream; each augmentation says which of them it takes."""
KERNELS = ("nearest", "bilinear", "bicubic", "area")


def keyed_draws(seed: int, epochs: int | np.ndarray, faces: np.ndarray, stream: int = 0) -> Tensor:
    """(N, DRAWS) uniform in [0, 1), row i a function of (seed, epochs[i], faces[i], stream) alone."""
    rows = [
        np.random.default_rng([seed, int(epoch), int(face), stream]).random(DRAWS, np.float32)
        for epoch, face in zip(np.broadcast_to(epochs, faces.shape), faces, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))


def between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draw


def flip(x: Tensor, draws: Tensor) -> Tensor:
    """Mirrored where draw 0 < .5."""
    return torch.where((draws[:, 0] < 0.5)[:, None, None, None].to(x.device), x.flip(3), x)


def jitter(x: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation each times 1 +- strength (draws 1 to 3), clamped to [0, 1]."""
    factor = between(draws[:, 1:4].to(x), 1 - strength, 1 + strength)[..., None, None, None]
    x = x * factor[:, 0]
    x = x.mean((1, 2, 3), keepdim=True) * (1 - factor[:, 1]) + x * factor[:, 1]
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * factor[:, 2]).clamp(0, 1)


def low_resolution(x: Tensor, px: Tensor) -> Tensor:
    """Each image reduced to its own px (N,) and back: bicubic with antialias, rounded to uint8 in between, as in
    the protocols (`faces.degrade.reduce`); an image whose px is not below its size is untouched."""
    out, size = x.clone(), x.shape[-1]
    for side in px.unique().tolist():
        if side < size:
            chosen = (px == side).nonzero()[:, 0].to(x.device)
            small = _resize(x[chosen], int(side))
            out[chosen] = _resize(small, size)
    return out


def low_resolution_crops(crops: np.ndarray, px: Tensor) -> np.ndarray:
    """`low_resolution` of uint8 crops (N, S, S, 3), chunk by chunk."""
    parts = []
    for start in range(0, len(crops), 64):
        some, side = crops[start : start + 64], px[start : start + 64]
        x = torch.from_numpy(np.ascontiguousarray(some)).permute(0, 3, 1, 2).float().div_(255)
        parts.append(low_resolution(x, side).mul_(255).round_().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def _resize(x: Tensor, size: int) -> Tensor:
    x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return x.mul(255).round().clamp(0, 255).div(255)


def random_px(draws: Tensor, share: float, low: float, high: float, size: int) -> Tensor:
    """(N,) whole px: log-uniform in [low, high] where draw 4 < share (by draw 5), else `size` (full)."""
    px = torch.exp(between(draws[:, 5], math.log(low), math.log(high))).round().long()
    return torch.where(draws[:, 4] < share, px, size)


def mixed_px(draws: Tensor, sizes: tuple[int, ...], copy: int = 0) -> Tensor:
    """(N,) px: one of `sizes`, by draw 6; further copies of an image take the sizes that follow, in turn."""
    return torch.tensor(sizes)[((draws[:, 6] * len(sizes)).long() + copy) % len(sizes)]


def rescale(x: Tensor, share: Tensor, kernel: Tensor) -> Tensor:
    """Each image reduced to `share` (N,) of its side and back to it, both by its own kernel (N,) of KERNELS."""
    out, size = x.clone(), x.shape[-1]
    sides = (share * size).round().long().clamp(2, size)
    for side, which in torch.stack([sides, kernel], 1).unique(dim=0).tolist():
        chosen = ((sides == side) & (kernel == which)).nonzero()[:, 0].to(x.device)
        small = _by_kernel(x[chosen], side, KERNELS[which])
        out[chosen] = _by_kernel(small, size, "bilinear" if KERNELS[which] == "area" else KERNELS[which])
    return out.clamp(0, 1)


def _by_kernel(x: Tensor, size: int, kernel: str) -> Tensor:
    smooth = kernel in ("bilinear", "bicubic")
    options = {"antialias": True, "align_corners": False} if smooth else {}
    return F.interpolate(x, size=(size, size), mode=kernel, **options)


def warp(x: Tensor, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Seen through a rotation (radians), a zoom (< 1 enlarges) and a shift (N, 2) in half-sides."""
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def adaface(x: Tensor, draws: Tensor) -> Tensor:
    """AdaFace's augmentation (Kim et al. 2022, section 4.1): crop, rescale and colour jitter, each at p = .2.

    The crop keeps 20% to 100% of the area (zeros around it, as in the official code); the rescaling goes to 20% to
    100% of the side by a random kernel; the jitter is of strength .5.
    """
    size = x.shape[-1]
    side = torch.sqrt(between(draws[:, 8], 0.2, 1.0))
    left, top = ((1 - side) * draws[:, 9 + i] for i in (0, 1))
    at = (torch.arange(size) + 0.5) / size
    across = (at >= left[:, None]) & (at <= (left + side)[:, None])
    down = (at >= top[:, None]) & (at <= (top + side)[:, None])
    kept = (down[:, :, None] & across[:, None, :])[:, None].to(x)
    x = torch.where(_chance(draws[:, 7], 0.2, x), x * kept, x)
    rescaled = rescale(x, between(draws[:, 12], 0.2, 1.0), (draws[:, 13] * len(KERNELS)).long())
    x = torch.where(_chance(draws[:, 11], 0.2, x), rescaled, x)
    return torch.where(_chance(draws[:, 14], 0.2, x), jitter(x, draws, 0.5), x)


def qgface(x: Tensor, draws: Tensor) -> Tensor:
    """QGFace's own augmentation (section IV-B, with the figures of its official code): every image is rescaled to
    10% to 50% of its side and back by a random kernel; then, more often and weaker than AdaFace's, a zoom into 80%
    to 100% of the area, a rotation of up to 10 degrees, colour jitter of .2 and JPEG of quality 75 to 100."""
    zoom = torch.sqrt(torch.where(draws[:, 8] < 0.5, between(draws[:, 9], 0.8, 1.0), 1.0))
    shift = (1 - zoom)[:, None] * between(draws[:, 10:12], -1, 1)
    angle = torch.where(draws[:, 12] < 0.5, between(draws[:, 13], -1, 1) * math.radians(10), 0.0)
    x = warp(x, angle, zoom, shift)
    x = rescale(x, between(draws[:, 14], 0.1, 0.5), (draws[:, 15] * len(KERNELS)).long())
    x = torch.where(_chance(draws[:, 16], 0.5, x), jitter(x, draws, 0.2), x)
    return torch.where(_chance(draws[:, 17], 0.5, x), compress(x, between(draws[:, 18], 75, 100)), x)


def compress(x: Tensor, quality: Tensor) -> Tensor:
    """JPEG of any size: the border is repeated up to whole blocks of 8."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    return jpeg(padded, quality.to(x))[..., :height, :width]


def _chance(draw: Tensor, probability: float, x: Tensor) -> Tensor:
    return (draw < probability)[:, None, None, None].to(x.device)
