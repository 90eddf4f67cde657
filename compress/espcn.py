"""ESPCN: a small super-resolution network that enlarges faces in front of a teacher (hallucination).

Shi et al. 2016, "Real-time single image and video super-resolution using an efficient sub-pixel convolutional neural
network": all convolutions run at the low resolution, the last one gives the pixels of a block each, which are then
put in their places. Widths and tanh are the paper's (section 3.1).
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from faces.align import crop
from faces.dataset import Faces
from faces.degrade import resize
from faces.errors import UserError
from faces.files import fingerprint, whole
from students.batches import draw_seed, epoch_order

_SAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Enlarging:
    """Of the crops of `template` (side x side px): from `px` to `scale` times as many pixels a side."""

    template: str
    side: int
    px: int
    scale: int


@dataclass(frozen=True)
class Recipe:
    """steps of Adam on `batch` faces, mirrored at random; the rate `lr` falls to 0 along a cosine. L1 loss."""

    steps: int = 5000
    batch: int = 32
    lr: float = 1e-3


class Espcn(nn.Module):
    """RGB (N, 3, p, p) in [0, 1] to (N, 3, scale p, scale p), not clipped.

    Ours: colour instead of luminance alone, and the network adds to the bicubic enlargement, which it gives before it
    has learnt anything.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(
            nn.Conv2d(3, 64, 5, padding=2, padding_mode="replicate"),
            nn.Tanh(),
            nn.Conv2d(64, 32, 3, padding=1, padding_mode="replicate"),
            nn.Tanh(),
            nn.Conv2d(32, 3 * scale**2, 3, padding=1, padding_mode="replicate"),
            nn.PixelShuffle(scale),
        )
        for parameter in self.layers[4].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        enlarged = F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        return enlarged + self.layers(x - 0.5)

    @torch.no_grad()
    def enlarge(self, images: np.ndarray, batch: int = 64) -> np.ndarray:
        """(N, p, p, 3) uint8 to (N, scale p, scale p, 3) uint8."""
        parts = []
        for start in range(0, len(images), batch):
            x = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255
            parts.append((self(x).clamp_(0, 1) * 255).round_().byte().permute(0, 2, 3, 1).contiguous().numpy())
        return np.concatenate(parts)


def psnr(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB, (N,), at most 100: both (N, H, W, 3) uint8."""
    error = np.square(images.astype(np.float64) - wanted).reshape(len(images), -1).mean(1)
    return 10 * np.log10(255**2 / np.maximum(error, 255**2 / 1e10))


def train_espcn(
    faces: Faces,
    what: Enlarging,
    how: Recipe,
    seed: int,
    folder: Path,
    progress: Callable[[int], None] | None = None,
    save_seconds: float = _SAVE_SECONDS,
) -> tuple[Espcn, float]:
    """The trained network in evaluation mode, and the CPU minutes it took: that of an earlier call where it is kept.

    Weights go to `folder`/espcn-PXxSCALE-KEY.safetensors; a killed training continues with the same call, from
    its last checkpoint beside it, to the same bytes: a step depends on (seed, step) alone. UserError: no faces.
    """
    if not len(faces):
        raise UserError("there is no face to train the super-resolution network on")
    key = fingerprint([asdict(what), asdict(how), seed, faces.state()])
    final = folder / f"espcn-{what.px}x{what.scale}-{key}.safetensors"
    spent = final.with_suffix(".seconds")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed(seed, 7))
        network = Espcn(what.scale)
    if not final.is_file():
        seconds = _train(network, faces, what, how, seed, final.with_suffix(".pt"), progress, save_seconds)
        with whole(spent) as temporary:
            temporary.write_text(f"{seconds:.1f}\n")
        with whole(final) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary)
        final.with_suffix(".pt").unlink(missing_ok=True)
    network.load_state_dict(load_file(final))
    return network.eval(), float(spent.read_text()) / 60


def _train(
    network: Espcn,
    faces: Faces,
    what: Enlarging,
    how: Recipe,
    seed: int,
    checkpoint: Path,
    progress: Callable[[int], None] | None,
    save_seconds: float,
) -> float:
    """Train in place; the CPU seconds of this and of the killed trainings that it continues."""
    network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=how.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / how.steps)) / 2)
    parts: dict[str, Any] = {"network": network, "optimiser": optimiser, "schedule": schedule}
    start, before = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        start, before = state["step"], state["seconds"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    if progress:
        progress(start)
    began, saved = time.process_time(), time.monotonic()
    for step in range(start, how.steps):
        low, high = _batch(faces, what, how.batch, seed, step)
        loss = F.l1_loss(network(low), high)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress:
            progress(1)
        if time.monotonic() - saved > save_seconds:
            spent = before + time.process_time() - began
            with whole(checkpoint) as temporary:
                held = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"step": step + 1, "seconds": spent, **held}, temporary)
            saved = time.monotonic()
    return before + time.process_time() - began


def _batch(faces: Faces, what: Enlarging, size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """(B, 3, px, px) and (B, 3, scale px, scale px) in [0, 1]: faces of shuffled epochs, reduced as in same@px."""
    count = len(faces)
    places = np.arange(step * size, (step + 1) * size)
    epochs = {int(e): epoch_order(count, seed, int(e)).numpy() for e in np.unique(places // count)}
    chosen = np.array([epochs[int(place // count)][place % count] for place in places])
    crops = crop(faces.images[chosen], faces.landmarks[chosen], what.template, what.side)
    mirrored = np.random.default_rng([seed, 808, step]).random(size) < 0.5
    crops[mirrored] = crops[mirrored, :, ::-1]
    low, high = (
        torch.from_numpy(resize(crops, side)).permute(0, 3, 1, 2).float() / 255
        for side in (what.px, what.px * what.scale)
    )
    return low.contiguous(memory_format=torch.channels_last), high


def largest_scale(px: int, side: int) -> int:
    """The largest power of two by which `px` can grow within `side`; UserError where that is less than two."""
    if 2 * px > side:
        raise UserError(f"faces of {px} px leave nothing to enlarge: the teacher sees {side} px")
    return 2 ** int(math.log2(side / px))
