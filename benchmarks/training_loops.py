"""Three ways to train a student on the same faces: ours, a plain PyTorch loop, a DataLoader of single images.

All do the same work a face: a random geometric jitter, blur, light, colour and JPEG at the student's size, forward,
relational loss, backward, AdamW. The two others are what one writes without this project, with stock calls.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from faces.degrade import Degradation, jpeg
from students import create_student
from students.batches import Examples, Recipe
from students.losses import relational
from students.train import train_student

PLAIN_BATCH = 256
Step = Callable[[], int]
"""One step of training; gives the number of faces it saw."""


def synthetic(count: int, side: int, margin: float) -> Examples:
    """Smooth noise in the shape of `count` training crops: speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    crops = np.stack([cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC) for one in coarse])
    return Examples(crops, margin, rng.standard_normal((count, 128)).astype(np.float32), None)


def ours(name: str, examples: Examples, recipe: Recipe, seconds: float, device: str) -> tuple[int, float]:
    """`students.train.train_student` itself for about `seconds`: (faces, seconds), its first two steps left out."""
    student, times = create_student(name), []

    class Enough(Exception):
        pass

    def tick(_: int) -> None:
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        # The first call comes before the first step; two steps warm up.
        if len(times) > 4 and times[-1] - times[2] > seconds:
            raise Enough

    with contextlib.suppress(Enough):
        train_student(student, examples, recipe, 0, device, progress=tick)
    return recipe.batch * (len(times) - 3), times[-1] - times[2]


def plain(name: str, examples: Examples, device: str) -> Step:
    """Whole batches of 256 as tensors, channels-last, float32, with PyTorch's own resizing and convolutions."""
    crops = torch.from_numpy(np.asarray(examples.crops)).permute(0, 3, 1, 2).to(device)
    assert examples.targets is not None
    targets, train = torch.from_numpy(examples.targets).to(device), _trainer(name, device)
    size = create_student(name).input_px

    def step() -> int:
        chosen = torch.randint(len(crops), (PLAIN_BATCH,), device=device)
        train(_degrade(crops[chosen], size, examples.margin), targets[chosen])
        return PLAIN_BATCH

    return step


def dataloader(name: str, examples: Examples, device: str, workers: int) -> Step:
    """OpenCV image by image in `workers` processes, PyTorch's DataLoader, batches of 256."""
    size = create_student(name).input_px
    loader = DataLoader(
        _OneByOne(examples, size), PLAIN_BATCH, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    batches, train = _endless(loader), _trainer(name, device)

    def step() -> int:
        images, targets = next(batches)
        images = images.to(device).permute(0, 3, 1, 2).float().div(255)
        train(images.contiguous(memory_format=torch.channels_last), targets.to(device))
        return len(targets)

    return step


def _endless(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def _trainer(name: str, device: str) -> Callable[[Tensor, Tensor], None]:
    student = create_student(name).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(student.parameters(), 3e-3)

    def train(images: Tensor, targets: Tensor) -> None:
        loss = relational(student(images), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return train


def _degrade(crops: Tensor, size: int, margin: float, how: Degradation | None = None) -> Tensor:
    how = how or Degradation()
    batch, inner, device = len(crops), 1 / (1 + 2 * margin), crops.device
    draw = lambda *shape: torch.randn(batch, *shape, device=device)  # noqa: E731
    chance = lambda share: (torch.rand(batch, device=device) < share).view(-1, 1, 1, 1)  # noqa: E731
    angle, zoom, shift = draw() * how.rotation, torch.exp(draw() * how.scale), draw(2) * 2 * how.shift * inner
    cos, sin = angle.cos() * zoom * inner, angle.sin() * zoom * inner
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    side = round(crops.shape[-1] * inner)
    grid = F.affine_grid(torch.stack(rows, 1), [batch, 3, side, side], align_corners=False)
    x = F.grid_sample(crops.float() / 255, grid, padding_mode="border", align_corners=False)
    x = torch.where(chance(how.flip), x.flip(3), x)
    x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    sigma = torch.rand(batch, device=device) * how.blur_sigma + 1e-3
    taps = torch.exp(-(torch.arange(-2, 3, device=device) ** 2) / (2 * sigma[:, None] ** 2))
    taps = taps / taps.sum(1, keepdim=True)
    kernel = (taps[:, :, None] * taps[:, None]).repeat_interleave(3, 0)[:, None]
    blurred = F.conv2d(x.reshape(1, -1, size, size), kernel, padding=2, groups=3 * batch).view_as(x)
    x = torch.where(chance(how.blur), blurred, x)
    x = x * (1 + how.gain * draw(1, 1, 1)) * (1 + how.colour * draw(3, 1, 1)) + how.bias * draw(1, 1, 1)
    x = torch.where(chance(how.grey), x.mean(1, keepdim=True), x).clamp(0, 1)
    quality = how.jpeg_quality + (95 - how.jpeg_quality) * torch.rand(batch, device=device)
    chosen = chance(how.jpeg).flatten()
    x[chosen] = jpeg(x[chosen], quality[chosen])
    return x.contiguous(memory_format=torch.channels_last)


class _OneByOne(Dataset):
    def __init__(self, examples: Examples, size: int) -> None:
        assert examples.targets is not None
        self.crops, self.targets, self.margin = np.asarray(examples.crops), examples.targets, examples.margin
        self.size, self.how = size, Degradation()

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        how, crop, size = self.how, self.crops[index], self.size
        # The worker's own seed: torch gives each one another.
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        side = crop.shape[0]
        scale = np.exp(rng.normal(0, how.scale)) * (1 + 2 * self.margin)
        turn = cv2.getRotationMatrix2D((side / 2, side / 2), np.degrees(rng.normal(0, how.rotation)), scale)
        turn[:, 2] = turn[:, 2] + rng.normal(0, how.shift * side, 2)
        image = cv2.warpAffine(crop, turn, (side, side), borderMode=cv2.BORDER_REPLICATE)
        if rng.random() < how.flip:
            image = cv2.flip(image, 1)
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        if rng.random() < how.blur:
            image = cv2.GaussianBlur(image, (5, 5), rng.random() * how.blur_sigma + 1e-3)
        light = image * (1 + rng.normal(0, how.gain)) * (1 + rng.normal(0, how.colour, 3)) + 255 * rng.normal(
            0, how.bias
        )
        if rng.random() < how.grey:
            light = light.mean(2, keepdims=True).repeat(3, 2)
        image = light.clip(0, 255).astype(np.uint8)
        if rng.random() < how.jpeg:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(how.jpeg_quality, 95))]
            image = np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR))
        return image, self.targets[index]
