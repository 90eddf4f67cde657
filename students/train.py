"""The one training loop of a student: arrays of crops, targets and labels in, a trained student out.

It knows no teacher. A step depends on (seed, step) alone, so a run that was killed continues from its last
checkpoint to the same weights, bit for bit on the same machine and thread count.
"""

import math
import pickle
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faces.align import crop
from faces.dataset import CROP_PX, Faces, Progress
from faces.degrade import Degradation, degrade
from faces.errors import UserError
from faces.files import fingerprint, whole
from students.losses import regression, relational
from students.tiny import EMBEDDING_DIM, Tiny


@dataclass(frozen=True)
class Recipe:
    """How a student is trained. `samples` counts degraded faces seen in all (steps x batch)."""

    samples: int = 500_000
    batch: int = 256
    optimiser: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    loss: str = "relational"
    temperature: float = 10.0
    class_weight: float = 1.0
    mimic_weight: float = 1.0
    pretrain: float = 0.0
    versions: int = 0
    average: float = 0.0
    degradation: Degradation = field(default_factory=Degradation)

    @property
    def steps(self) -> int:
        return max(1, self.samples // self.batch)


@dataclass(frozen=True)
class Examples:
    """N training faces. crops: (N, S, S, 3) uint8 RGB, the ArcFace template enlarged by `margin` on each side;
    targets: (N, D) float32 to mimic, or None; labels: (N,) int64, -1 = unlabelled, or None = no labels."""

    crops: np.ndarray
    margin: float
    targets: np.ndarray | None
    labels: np.ndarray | None


def training_crops(faces: Faces, px: int, margin: float) -> np.ndarray:
    """(N, S, S, 3) uint8: crops three times the input's side, but no finer than the stored ones are."""
    finest = round(CROP_PX * 0.9 * (1 + 2 * margin))
    return crop(faces.images, faces.landmarks, "arcface", min(3 * px, finest), margin)


class Heads(nn.Module):
    """What only training needs: the identity layer, and for targets of another width a linear map to them."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.identity = nn.Linear(EMBEDDING_DIM, classes) if classes else None
        self.widen = nn.Linear(EMBEDDING_DIM, width) if width not in (0, EMBEDDING_DIM) else nn.Identity()


def train_student(
    student: Tiny,
    examples: Examples,
    recipe: Recipe,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    checkpoint_seconds: float = 10.0,
) -> list[dict[str, float]]:
    """Train `student` in place; ends in evaluation mode on the CPU. Returns the curve: about 200 rows of step,
    lr, loss and its parts.

    `checkpoint` is written every `checkpoint_seconds` and read at the start where it exists. `progress` gets the
    number of steps just done or found done. UserError: no target and no label, a loss that is not finite, a
    checkpoint of another run.
    """
    if not len(examples.crops):
        raise UserError("the student has nothing to learn from: no training face")
    classes = 0 if examples.labels is None else int(examples.labels.max()) + 1
    width = 0 if examples.targets is None else examples.targets.shape[1]
    if not classes and not width:
        raise UserError("the student has nothing to learn from: no labelled face and no teacher target")
    torch.manual_seed(_seed(seed, 1))
    heads = Heads(classes, width).to(device)
    student.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    both = nn.ModuleList([student, heads])
    optimiser, schedule = _optimiser(both, recipe)
    smooth = torch.optim.swa_utils.AveragedModel(
        student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.average), use_buffers=True
    )
    parts = {"both": both, "optimiser": optimiser, "schedule": schedule, "smooth": smooth}
    key = fingerprint([asdict(recipe), seed, examples.crops.shape, examples.margin, classes, width])
    start, curve = _restore(parts, checkpoint, key)
    if progress:
        progress(start)
    every = max(1, recipe.steps // 200)
    batches = _Batches(examples, student.input_px, recipe, seed, device)
    saved = time.monotonic()
    for step in range(start, recipe.steps):
        images, targets, labels = batches.at(step)
        pretraining = step < recipe.pretrain * recipe.steps and classes > 0
        losses = _losses(student, heads, images, None if pretraining else targets, labels, recipe)
        loss = sum(losses.values(), start=torch.zeros((), device=device))
        optimiser.zero_grad()
        loss.backward()
        lr = float(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
        if recipe.average:
            smooth.update_parameters(student)
        if progress:
            progress(1)
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            if not math.isfinite(loss.item()):
                raise UserError(f"the student's loss became {loss.item()} at step {step}; lower distill.lr")
            parts_now = {name: value.item() for name, value in losses.items()}
            curve.append({"step": step + 1, "lr": lr, "loss": loss.item(), **parts_now})
        if checkpoint and time.monotonic() - saved > checkpoint_seconds:
            _save(parts, checkpoint, key, step + 1, curve)
            saved = time.monotonic()
    if recipe.average:
        student.load_state_dict(smooth.module.state_dict())
    student.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return curve


def _losses(
    student: Tiny, heads: Heads, images: Tensor, targets: Tensor | None, labels: Tensor | None, recipe: Recipe
) -> dict[str, Tensor]:
    """Eq. 4: classification (eq. 5) and mimicking (eq. 6 or the relational loss), each with its weight."""
    feature = student(images)
    losses = {}
    if labels is not None and heads.identity is not None:
        known = labels >= 0
        per_face = F.cross_entropy(heads.identity(feature), labels.clamp(min=0), reduction="none")
        losses["class"] = recipe.class_weight * (per_face * known).sum() / known.sum().clamp(min=1)
    if targets is not None:
        mimic = heads.widen(feature)
        loss = (
            relational(mimic, targets, recipe.temperature)
            if recipe.loss == "relational"
            else regression(mimic, targets)
        )
        losses["mimic"] = recipe.mimic_weight * loss
    return losses


class _Batches:
    """Batch `step` of an endless stream of shuffled epochs; what a step sees depends on (seed, step) alone."""

    def __init__(self, examples: Examples, size: int, recipe: Recipe, seed: int, device: str) -> None:
        crops = torch.from_numpy(np.ascontiguousarray(examples.crops)).permute(0, 3, 1, 2).to(device)
        self.crops, self.margin, self.size = crops, examples.margin, size
        self.recipe, self.seed, self.device = recipe, seed, device
        self.targets = None if examples.targets is None else torch.from_numpy(examples.targets).to(device)
        self.labels = None if examples.labels is None else torch.from_numpy(examples.labels).to(device)
        self.fixed = self._fixed_versions() if recipe.versions else None
        self.count = len(crops) * max(1, recipe.versions)
        self.order = torch.empty(0, dtype=torch.int64)
        self.order_epoch = -1

    def at(self, step: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        positions = torch.arange(step * self.recipe.batch, (step + 1) * self.recipe.batch)
        chosen = torch.cat([self._epoch(int(e))[positions[positions // self.count == e] % self.count]
                            for e in torch.unique(positions // self.count)])  # fmt: skip
        face = (chosen % len(self.crops)).to(self.device)
        if self.fixed is not None:
            images = self.fixed[chosen.to(self.device)].float() / 255
        else:
            images = self._degrade(self.crops[face], 2 + step)
        return (
            images,
            None if self.targets is None else self.targets[face],
            None if self.labels is None else self.labels[face],
        )

    def _degrade(self, crops: Tensor, key: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(_seed(self.seed, key))
        return degrade(crops, self.size, self.margin, self.recipe.degradation, generator)

    def _fixed_versions(self) -> Tensor:
        """The paper's fixed set of degraded versions: (versions x N, 3, p, p) uint8, version-major."""
        versions = torch.empty(
            (self.recipe.versions * len(self.crops), 3, self.size, self.size), dtype=torch.uint8, device=self.device
        )
        done = 0
        for version in range(self.recipe.versions):
            for i, crops in enumerate(self.crops.split(1024)):
                images = self._degrade(crops, -1 - version * 1_000_003 - i)
                versions[done : done + len(images)] = (images * 255).round().byte()
                done += len(images)
        return versions

    def _epoch(self, epoch: int) -> Tensor:
        if epoch != self.order_epoch:
            generator = torch.Generator().manual_seed(_seed(self.seed, -(2**40) - epoch))
            self.order, self.order_epoch = torch.randperm(self.count, generator=generator), epoch
        return self.order


def _seed(seed: int, key: int) -> int:
    """One 63-bit seed from two numbers: neighbouring keys give unrelated streams."""
    return int(np.random.SeedSequence([seed, key % 2**64]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _optimiser(model: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if recipe.optimiser == "sgd":
        # The paper: stochastic gradient descent, learning rate .001; momentum is not stated there.
        optimiser: torch.optim.Optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
        return optimiser, torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
    warmup = max(1, round(recipe.warmup * recipe.steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, (recipe.steps - step) / max(1, recipe.steps - warmup), 1.0)

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _save(parts: dict, path: Path, key: str, step: int, curve: list[dict[str, float]]) -> None:
    with whole(path) as temporary:
        torch.save(
            {"key": key, "step": step, "curve": curve, **{name: part.state_dict() for name, part in parts.items()}},
            temporary,
        )


def _restore(parts: dict, path: Path | None, key: str) -> tuple[int, list[dict[str, float]]]:
    if path is None or not path.is_file():
        return 0, []
    try:
        state = torch.load(path, weights_only=True)
        if not isinstance(state, dict) or state["key"] != key:
            raise ValueError("its recipe, seed or data differ")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["step"], state["curve"]
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as problem:
        # torch's own message would advise to load the file with arbitrary code in it.
        reason = "it is damaged" if isinstance(problem, pickle.UnpicklingError) else problem
        raise UserError(f"{path} is no checkpoint of this run ({reason}); start again with --fresh") from None
