"""Low resolution: the protocol's exact reduction, and the batched random degradation of training."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """(N, H, W, 3) uint8 to (N, size, size, 3) uint8, bicubic with antialias, rounded."""
    if images.shape[1:3] == (size, size):
        return images
    parts = []
    for start in range(0, len(images), 256):
        x = torch.from_numpy(np.ascontiguousarray(images[start : start + 256])).permute(0, 3, 1, 2).float()
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        parts.append(x.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy())
    return np.concatenate(parts) if parts else np.empty((0, size, size, 3), dtype=np.uint8)


def reduce(images: np.ndarray, px: int | None, size: int) -> np.ndarray:
    """What a model of input `size` sees of crops at `px` pixels: reduced to px, then brought to `size`.

    `px=None` is full size. Both steps are `resize`, so the low-resolution image is rounded to uint8 in between.
    """
    return resize(images if px is None else resize(images, px), size)


# Held where a configuration holds a Degradation; the dataclass itself checks nothing.
Spread = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Degradation:
    """Strength of the random versions D(I) of a face (bridge distillation, eq. 5 and section IV).

    rotation: radians, scale and shift: share of the template, each one sigma of the landmark jitter; flip, blur,
    grey and jpeg: probabilities; blur_sigma: largest sigma in pixels of the student's input; gain, bias and
    colour: one sigma of contrast, brightness and per-channel gain; jpeg_quality: lowest quality.
    """

    rotation: Spread = 0.06
    scale: Spread = 0.04
    shift: Spread = 0.025
    flip: Probability = 0.5
    blur: Probability = 0.2
    blur_sigma: Spread = 0.8
    gain: Spread = 0.15
    bias: Spread = 0.06
    colour: Spread = 0.04
    grey: Probability = 0.1
    jpeg: Probability = 0.1
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 50


def degrade(
    crops: Tensor,
    size: int,
    margin: float,
    how: Degradation,
    generator: torch.Generator,
    rows: slice = slice(None),
    of: int | None = None,
) -> Tensor:
    """A random low-resolution version of each face.

    crops: (B, 3, S, S) uint8 RGB, the ArcFace template enlarged by `margin` on each side; returns
    (B, 3, size, size) float in [0, 1] on the same device. The draw depends on `generator` alone. Where the crops
    are but the `rows` of a batch `of` so many, each gets the version that it gets in the whole batch.
    """
    batch, device = len(crops), crops.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(of or batch, *shape, generator=generator, device=device)[rows]

    def uniform() -> Tensor:
        return torch.rand(of or batch, generator=generator, device=device)[rows]

    def chance(probability: float) -> Tensor:
        return uniform() < probability

    angle, zoom = normal() * how.rotation, torch.exp(normal() * how.scale)
    mirror = torch.where(chance(how.flip), -1.0, 1.0)
    # grid_sample's theta maps output to input coordinates in [-1, 1]; the template is the crop's inner part.
    inner = 1 / (1 + 2 * margin)
    cos, sin = torch.cos(angle) * zoom * inner, torch.sin(angle) * zoom * inner
    shift = normal(2) * (2 * how.shift * inner)
    theta = torch.stack(
        [torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)],
        1,
    )
    fine = size * max(1, math.floor(crops.shape[-1] * inner / size))
    grid = _affine_grid(theta, fine)
    x = F.grid_sample(crops.float().div_(255), grid, mode="bilinear", padding_mode="border", align_corners=False)
    weights = _antialias_weights(fine, size).to(device)
    x = weights @ x @ weights.T

    if how.blur:
        chosen, sigma = chance(how.blur).nonzero()[:, 0], uniform() * how.blur_sigma
        x = x.index_copy(0, chosen, _blur(x[chosen], sigma[chosen]))
    light = (1 + how.gain * normal(1, 1, 1)) * (1 + how.colour * normal(3, 1, 1))
    x = torch.addcmul(how.bias * normal(1, 1, 1), x, light)
    grey = chance(how.grey)[:, None, None, None]
    x = torch.where(grey, x.mean(1, keepdim=True), x).clamp_(0, 1)
    if how.jpeg:
        chosen = chance(how.jpeg).nonzero()[:, 0]
        quality = how.jpeg_quality + (95 - how.jpeg_quality) * uniform()
        x = x.index_copy(0, chosen, jpeg(x[chosen], quality[chosen]))
    return x.contiguous(memory_format=torch.channels_last)


def _affine_grid(theta: Tensor, side: int) -> Tensor:
    """`F.affine_grid` of (B, 2, 3) for (side, side) pixels, (B, side, side, 2). A sum of what columns and what rows
    give, which takes a tenth of the time of torch's product of matrices and more."""
    at = (2 * torch.arange(side, device=theta.device) + 1) / side - 1
    columns, rows = theta[:, :, :1] * at + theta[:, :, 2:], theta[:, :, 1:2] * at
    return columns.transpose(1, 2)[:, None] + rows.transpose(1, 2)[:, :, None]


@lru_cache(maxsize=16)
def _antialias_weights(source: int, target: int) -> Tensor:
    """(target, source) matrix of `F.interpolate`'s antialiased bicubic, to be applied as a matrix product."""
    return F.interpolate(
        torch.eye(source)[None, None],
        size=(target, source),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )[0, 0]


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each image by its own sigma in pixels (0 = untouched), a 5 x 5 separable kernel."""
    offsets = torch.arange(-2, 3, device=x.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None].clamp(min=1e-3) ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    for axis in (2, 3):
        padded = F.pad(x, (0, 0, 2, 2) if axis == 2 else (2, 2, 0, 0), mode="replicate")
        length = x.shape[axis]
        x = sum(
            (padded.narrow(axis, i, length) * kernel[:, i, None, None, None] for i in range(5)),
            start=torch.zeros_like(x),
        )
    return x


# The luminance quantisation table of the JPEG standard (ITU T.81, table K.1).
_QUANTISATION = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=torch.float32,
)


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """JPEG's loss without its file: 8 x 8 DCT of each channel, quantised as at `quality` (N,), in 1..100.

    x: (N, 3, H, W) in [0, 1], H and W multiples of 8. Colour is coded as YCbCr, not sub-sampled.
    """
    if not len(x):
        return x
    n, _, height, width = x.shape
    k = torch.arange(8, dtype=torch.float32, device=x.device)
    dct = torch.cos(math.pi / 8 * k[:, None] * (k[None] + 0.5)) * 0.5
    dct[0] /= math.sqrt(2)
    to_ycc = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], device=x.device
    )
    ycc = torch.einsum("ck,nkhw->nchw", to_ycc, x * 255)
    blocks = ycc.reshape(n, 3, height // 8, 8, width // 8, 8).permute(0, 1, 2, 4, 3, 5)
    blocks = blocks - torch.tensor([128.0, 0.0, 0.0], device=x.device)[None, :, None, None, None, None]
    # libjpeg's quality curve; it rounds halves up.
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    table = (_QUANTISATION.to(x.device) * factor[:, None, None] + 0.5).floor().clamp(1, 255)[:, None, None, None]
    blocks = dct.T @ ((dct @ blocks @ dct.T / table).round() * table) @ dct
    blocks = blocks + torch.tensor([128.0, 0.0, 0.0], device=x.device)[None, :, None, None, None, None]
    ycc = blocks.permute(0, 1, 2, 4, 3, 5).reshape(n, 3, height, width)
    return (torch.einsum("ck,nkhw->nchw", torch.linalg.inv(to_ycc), ycc) / 255).clamp(0, 1)
