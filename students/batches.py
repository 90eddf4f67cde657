"""What a student sees at each step: degraded crops, targets and labels, as tensors and without a loop over images."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faces.align import crop
from faces.crops import CropStore
from faces.dataset import CROP_PX, Faces
from faces.degrade import Degradation, degrade
from faces.distributed import rank, world_size
from faces.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """How a student is trained. samples: degraded faces seen in all (steps x batch); class_loss: one of
    `students.heads.CLASS_LOSSES`; sizes: input sizes in px, one of which is drawn for each step; none = the student's
    own; average: the student is the mean of its weights after each step, each weighing `average` times what the next
    one does; 0 = those of the last step; threads: of the CPU."""

    samples: int = 500_000
    batch: int = 256
    optimiser: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    loss: str = "relational"
    temperature: float = 10.0
    class_loss: str = "softmax"
    class_weight: float = 1.0
    mimic_weight: float = 1.0
    pretrain: float = 0.0
    versions: int = 0
    sizes: tuple[int, ...] = ()
    average: float = 0.0
    precision: str = "fp32"
    threads: int = 1
    degradation: Degradation = field(default_factory=Degradation)

    @property
    def steps(self) -> int:
        return max(1, self.samples // self.batch) if self.samples else 0


@dataclass(frozen=True)
class Examples:
    """N training faces. crops: (N, S, S, 3) uint8 RGB, the ArcFace template enlarged by `margin` on each side, in
    memory or a store of them; targets: (N, D) float32 to mimic, or None; labels: (N,) int64, -1 = unlabelled, or
    None = no labels."""

    crops: np.ndarray | CropStore
    margin: float
    targets: np.ndarray | None
    labels: np.ndarray | None


def crop_side(px: int, margin: float) -> int:
    """Side of a training crop: three times the input's, but no finer than the stored images are."""
    return min(3 * px, round(CROP_PX * 0.9 * (1 + 2 * margin)))


def training_crops(faces: Faces, px: int, margin: float) -> np.ndarray:
    """(N, S, S, 3) uint8: what a student of `px` learns from, all in memory."""
    return crop(faces.images, faces.landmarks, "arcface", crop_side(px, margin), margin)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order (count,) int64 in which an epoch sees its faces."""
    generator = torch.Generator().manual_seed(draw_seed(seed, -(2**40) - epoch))
    return torch.randperm(count, generator=generator)


def draw_seed(seed: int, key: int) -> int:
    """One 63-bit seed from two numbers: neighbouring keys give unrelated streams."""
    return int(np.random.SeedSequence([seed, key % 2**64]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Batches:
    """Batch `step` of an endless stream of shuffled epochs; what a step sees depends on (seed, step) alone.

    On a GPU the crops lie on the device, on a CPU they stay where they are. Of several processes each one degrades
    its share of every batch: together the batch of one process.
    """

    def __init__(self, examples: Examples, size: int, recipe: Recipe, seed: int, device: str) -> None:
        if recipe.versions and recipe.sizes:
            raise UserError("a fixed set of versions has one size: set distill.versions=0, or leave out distill.sizes")
        self.margin, self.size = examples.margin, size
        self.recipe, self.seed, self.device = recipe, seed, device
        share = recipe.batch // world_size()
        self.mine = slice(rank() * share, (rank() + 1) * share)
        self.targets = None if examples.targets is None else torch.from_numpy(examples.targets).to(device)
        self.labels = None if examples.labels is None else torch.from_numpy(examples.labels).to(device)
        self.crops = _crops(examples.crops, device)
        self.fixed = self._fixed_versions() if recipe.versions else None
        self.count = len(self.crops) * max(1, recipe.versions)
        self.order, self.order_epoch = torch.empty(0, dtype=torch.int64), -1

    def at(self, step: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Images (B / processes, 3, size, size) in [0, 1] of this process; targets (B, D) and labels (B,) of all."""
        positions = torch.arange(step * self.recipe.batch, (step + 1) * self.recipe.batch)
        chosen = torch.cat([self._epoch(int(e))[positions[positions // self.count == e] % self.count]
                            for e in torch.unique(positions // self.count)])  # fmt: skip
        face = chosen % len(self.crops)
        if self.fixed is not None:
            images = self.fixed[chosen[self.mine].to(self.device)].float() / 255
        else:
            generator = torch.Generator(self.device).manual_seed(draw_seed(self.seed, 2 + step))
            crops, how = self.crops[face[self.mine]], self.recipe.degradation
            images = degrade(crops, self._size(step), self.margin, how, generator, self.mine, len(chosen))
        face = face.to(self.device)
        return (
            images,
            None if self.targets is None else self.targets[face],
            None if self.labels is None else self.labels[face],
        )

    def _size(self, step: int) -> int:
        sizes = self.recipe.sizes or (self.size,)
        return sizes[draw_seed(self.seed, -(2**50) - step) % len(sizes)]

    def _fixed_versions(self) -> Tensor:
        """The paper's fixed set of degraded versions: (versions x N, 3, p, p) uint8, version-major."""
        count = len(self.crops)
        versions = torch.empty(
            (self.recipe.versions * count, 3, self.size, self.size), dtype=torch.uint8, device=self.device
        )
        done = 0
        for version in range(self.recipe.versions):
            for i, faces in enumerate(torch.arange(count).split(1024)):
                generator = torch.Generator(self.device).manual_seed(draw_seed(self.seed, -1 - version * 1_000_003 - i))
                images = degrade(self.crops[faces], self.size, self.margin, self.recipe.degradation, generator)
                versions[done : done + len(images)] = (images * 255).round().byte()
                done += len(images)
        return versions

    def _epoch(self, epoch: int) -> Tensor:
        if epoch != self.order_epoch:
            self.order, self.order_epoch = epoch_order(self.count, self.seed, epoch), epoch
        return self.order


class _Stored:
    """A store's crops by face, as tensors (M, 3, S, S)."""

    def __init__(self, store: CropStore) -> None:
        self.store = store
        self.row_of = np.empty(len(store), dtype=np.int64)
        self.row_of[store.order] = np.arange(len(store))

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, faces: Tensor) -> Tensor:
        return torch.from_numpy(self.store.rows(self.row_of[faces.numpy()])).permute(0, 3, 1, 2)


class _OnDevice:
    def __init__(self, crops: np.ndarray, device: str) -> None:
        self.crops = torch.from_numpy(np.ascontiguousarray(crops)).to(device)

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, faces: Tensor) -> Tensor:
        # Copies whole crops; on a CPU, indexing with a tensor goes element by element.
        return self.crops.index_select(0, faces.to(self.crops.device)).permute(0, 3, 1, 2)


def _crops(crops: np.ndarray | CropStore, device: str) -> Any:
    if not isinstance(crops, CropStore):
        return _OnDevice(crops, device)
    stored = _Stored(crops)
    # A GPU reads them from its own memory, in the order of the faces.
    return stored if device == "cpu" else _OnDevice(crops.rows(stored.row_of), device)
