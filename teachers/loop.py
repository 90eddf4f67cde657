"""The one loop of all fine-tuning methods, on Lightning Fabric: one CPU, one GPU, or many processes.

A step depends on (seed, step) alone, and every random number of a face on (seed, epoch, face): two processes give
the weights of one with the same global batch, and a killed run ends with those of one that was never killed.
"""

import contextlib
import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from faces.align import crop
from faces.dataset import Faces
from faces.distributed import all_sum, gather, global_batch_norm, rank, world_size
from faces.errors import UserError
from faces.files import fingerprint
from faces.memory import keep_freed_memory
from faces.partition import rank_slice
from teachers import augment, lora
from teachers.checkpoint import Checkpoint
from teachers.fabric import is_sharded
from teachers.losses.partial_fc import PartialFC
from teachers.methods.base import Method, create_method, kind_of
from teachers.optimise import Average, create_head_optimiser, create_optimiser, rate_at, trained
from teachers.samplers import Stream
from teachers.settings import Finetune
from teachers.tuned import digest

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from teachers.registry import Teacher

Check = Callable[["Teacher"], dict[str, float]]
"""Measures a teacher in evaluation mode; what it returns goes into the curve."""
Row = dict[str, float]
SAMPLE_FACES = 4
"""Faces a person whose embeddings set the class weights and the triplet margin before the first step."""
COLLAPSED = 0.1
"""Share of the initial spread of the unit features below which a teacher tells nobody apart any more."""


class Network(nn.Module):
    """The backbone as the loop runs it: (N, 3, p, p) and alpha (N,) or None to (N, D)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor, alpha: Tensor | None = None) -> Tensor:
        with lora.use_alpha(self.backbone, lora.DEFAULT_ALPHA if alpha is None else alpha):
            return self.backbone(x)


def finetune(
    teacher: "Teacher",
    faces: Faces,
    how: Finetune,
    seed: int,
    fabric: "Fabric",
    folder: Path,
    *,
    progress: Callable[[int, str], None] | None = None,
    check: Check | None = None,
    checks: int = 4,
    checkpoint_every: int = 25,
    stop_after: int | None = None,
    first_gradient: Callable[[Tensor], None] | None = None,
    measured_on: str = "",
) -> list[Row]:
    """Fine-tune `teacher` in place on the labelled `faces`, and on the others where `how.unlabelled`.

    Returns the curve, about 200 rows, the loss terms in it.

    Continues from the checkpoint in `folder`, where one of the same settings, seed and faces lies there; the weights
    then are those of a run that was never stopped. `check` is called before the first step, `checks` times on the
    way and at the end (never under FSDP). `progress` gets (steps done, a few words). `stop_after` ends early, as a
    kill would, with a checkpoint. `first_gradient` gets the whole gradient of the first step, before clipping, in one
    row. `measured_on` names what `check` measures on: one curve is not continued on another. UserError: too few
    people, a teacher with adapters, a batch that the processes cannot share, a checkpoint of another run, a loss that
    is not finite, features that collapse to one point.
    """
    whole = how.average or how.interpolate < 1 or (how.method, how.contrastive) == ("qgface", "momentum")
    if is_sharded(fabric) and whole:
        raise UserError(
            "averaged or interpolated weights and the momentum queue need the whole network on each process: not with "
            "fsdp"
        )
    if is_sharded(fabric):
        # A part of a sharded network cannot be run on its own.
        check = None
    if (how.batch + how.unlabelled) % world_size():
        raise UserError(f"a step of {how.batch + how.unlabelled} faces does not divide among {world_size()} processes")
    if not how.unlabelled:
        faces = faces.subset(faces.labelled)
    if len(faces.names) < 2:
        raise UserError(f"{len(faces.names)} people have two faces or more in {faces.source}; fine-tuning needs two")
    check_unadapted(teacher)
    kind = kind_of(how.method)
    torch.manual_seed(_seed(seed, 0))
    kind.adapt(teacher.backbone, how)
    method = create_method(how, teacher.embedding_dim, len(faces.names), teacher.backbone)
    trainer = _Trainer(teacher, faces, how, method, seed, fabric, folder, measured_on)
    steps = min(how.steps, stop_after or how.steps)
    every, moments = max(1, how.steps // 200), _moments(how.steps, checks if check else 0)
    if progress:
        progress(trainer.done, "")
    with keep_freed_memory():
        for step in range(trainer.done, steps):
            if check and step == 0:
                trainer.curve.append({"step": 0, **trainer.measure(check)})
            row = trainer.step(step, first_gradient if step == 0 else None)
            if (step + 1) % every == 0 or step + 1 in moments or step == 0:
                if check and step + 1 in moments:
                    row |= trainer.measure(check)
                trainer.log(row)
            if progress:
                progress(1, f"loss {row['loss']:.3f}")
            if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                trainer.save(step + 1)
    if steps == how.steps:
        trainer.finish()
    teacher.backbone.eval()
    return trainer.curve


def check_unadapted(teacher: "Teacher") -> None:
    """UserError where its backbone has adapters: a file of theirs belongs to frozen weights that lie in another one."""
    if any(lora.is_adapter(name) for name, _ in teacher.backbone.named_parameters()):
        raise UserError(
            f"{teacher.name} has adapters already ({teacher.source}) and is not tuned again: give the weights that "
            "they were made from, or take it as it is (compress.pipeline: --teacher-method none)"
        )


class _Trainer:
    """The state of a running fine-tuning."""

    def __init__(
        self,
        teacher: "Teacher",
        faces: Faces,
        how: Finetune,
        method: Method,
        seed: int,
        fabric: "Fabric",
        folder: Path,
        measured_on: str,
    ) -> None:
        self.measured_on = measured_on
        self.teacher, self.faces, self.how, self.seed, self.fabric = teacher, faces, how, seed, fabric
        self.method = method.to(fabric.device)
        self.method.autocast = fabric.autocast
        self.precision = torch.float64 if fabric._precision.precision == "64-true" else torch.float32
        self.method.to(self.precision)
        self.alpha = teacher.alpha.to(fabric.device) if method.needs_alpha and teacher.alpha is not None else None
        start = digest(teacher.backbone.state_dict())
        made = [asdict(how), seed, faces.state(), teacher.name, teacher.source, start, fabric._precision.precision]
        if self.alpha is not None:
            made.append(digest(self.alpha.state_dict()))
        key = fingerprint(made)
        adapted = any(lora.is_adapter(name) for name, _ in teacher.backbone.named_parameters())
        self.checkpoint = Checkpoint(folder, key, fabric, lora.is_adapter if adapted else lambda _: True)
        self.curve: list[Row] = []
        self.done = 0
        backbone = teacher.backbone.to(fabric.device)
        if how.train_batch_norm:
            global_batch_norm(backbone)
        self.stream = Stream(method.sampler, faces.identities, how.batch, seed, how.unlabelled)
        self.sample = self._sample() if not self.checkpoint.exists() else None
        if self.sample is not None:
            self.method.start(self.sample[0].to(self.precision), self.sample[1])
        self.spread = float("nan") if self.sample is None else spread(self.sample[0])
        self.layout = torch.preserve_format
        if fabric._precision.precision == "bf16-mixed" and not is_sharded(fabric):
            # Convolutions in bfloat16 are up to twice as fast so; in float32 it makes no clear difference.
            self.layout = torch.channels_last
            for network in (backbone, self.method):
                network.to(memory_format=self.layout)
        # FSDP takes the backbone apart: this is where the trained weights are put together again.
        self.plain = copy.deepcopy(backbone).cpu() if is_sharded(fabric) else None
        self.model = fabric.setup_module(Network(backbone))
        self._freeze()
        # For one optimiser, Fabric gives one.
        self.optimiser = cast(
            torch.optim.Optimizer, fabric.setup_optimizers(create_optimiser(trained(self.model), how))
        )
        own = [p for p in self.method.parameters() if p.requires_grad]
        self.head_optimiser = create_head_optimiser(own, how) if own else None
        kept = how.average or how.interpolate < 1
        self.mean = Average(self.model, how.average, how.interpolate) if kept else None
        self.reader = ThreadPoolExecutor(1)
        self._restore()
        if self.method.centre is not None:
            # Cosines are trained, so they are what the teacher is compared by from now on.
            teacher.centre, teacher.metric = self.method.centre, "cosine"

    def _freeze(self) -> None:
        """Training mode, but for batch norms that stay as they are."""
        self.model.train()
        if not self.how.train_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _sample(self) -> tuple[Tensor, Tensor]:
        """Features of the first faces of each person by the teacher as it is, and their labels."""
        labels = self.faces.identities
        order = np.argsort(labels, kind="stable")
        first = np.concatenate([[0], np.flatnonzero(np.diff(labels[order])) + 1])
        place = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
        chosen = order[(place < SAMPLE_FACES) & (labels[order] >= 0)]
        if self.how.method == "octuplet" or self.how.head_from == "random":
            chosen = np.random.default_rng([self.seed, 13]).permutation(chosen)[:512]
        features = torch.from_numpy(self.teacher.embed_faces(self.faces.subset(chosen)))
        if self.teacher.centre is not None:
            # The backbone's own are trained: an earlier fine-tuning took its centre from them.
            features = features + self.teacher.centre.to(features)
        device = self.fabric.device
        return features.to(device), torch.from_numpy(labels[chosen]).to(device)

    def _restore(self) -> None:
        named = {"method": self.method, "head_optimiser": self.head_optimiser, "mean": self.mean}
        own = {name: part for name, part in named.items() if part is not None}
        self.parts = {"model": self.model, "optimiser": self.optimiser}, own
        restored = self.checkpoint.load(*self.parts)
        if restored is not None:
            if restored["measured_on"] != self.measured_on:
                raise UserError(
                    "the curve of this fine-tuning was measured on other faces or pairs (--val, --pairs, --checks): "
                    "give the same, or another --out"
                )
            self.done, self.curve, self.spread = restored["step"], restored["curve"], restored["spread"]

    def save(self, step: int) -> None:
        notes = {"step": step, "curve": self.curve, "spread": self.spread, "measured_on": self.measured_on}
        self.checkpoint.save(*self.parts, notes)

    def log(self, row: Row) -> None:
        self.curve.append(row)
        for logger in self.fabric.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "step"}, int(row["step"]))

    def measure(self, check: Check) -> Row:
        """What `check` says of the teacher, with the weights that it would end with."""
        self.teacher.eval()
        with self.mean.swapped(self.model) if self.mean is not None else contextlib.nullcontext():
            found = check(self.teacher)
        self._freeze()
        return found

    def finish(self) -> None:
        """Leave the teacher with its final weights."""
        if self.mean is not None:
            self.mean.put(self.model)
        if self.plain is not None:
            self.plain.load_state_dict(self.checkpoint.backbone(), strict=False)
            self.teacher.backbone = self.plain
        self.teacher.backbone.to(memory_format=torch.contiguous_format)

    def step(self, step: int, look: Callable[[Tensor], None] | None = None) -> Row:
        """One optimiser step; returns its row of the curve. `look` gets the backbone's gradient."""
        how, rate = self.how, self.how.lr * rate_at(step, self.how)
        for optimiser in [self.optimiser, *([self.head_optimiser] if self.head_optimiser else [])]:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["size"]
            optimiser.zero_grad()
        torch.manual_seed(_seed(self.seed, 1 + step * world_size() + rank()))
        row: Row = {"step": step + 1, "lr": rate, "loss": 0.0}
        for micro in range(how.accumulate):
            with self.fabric.no_backward_sync(self.model, enabled=micro < how.accumulate - 1):
                self._backward(step * how.accumulate + micro, row)
        self._share_head_gradients()
        if look:
            look(torch.cat([p.grad.flatten() for p in trained(self.model) if p.grad is not None]))
        if how.clip:
            norm = self.fabric.clip_gradients(self.model, self.optimiser, max_norm=how.clip, error_if_nonfinite=False)
            if norm is not None:
                row["gradient"] = float(norm)
        self.optimiser.step()
        if self.head_optimiser:
            self.head_optimiser.step()
        self.method.follow(cast(Network, self.model.module).backbone)
        if self.mean is not None:
            self.mean.update(self.model)
        self._healthy(row)
        return row

    def _backward(self, position: int, row: Row) -> None:
        images, draws, labels = self._batch(position)
        views = [view.to(self.precision, memory_format=self.layout) for view in self.method.see(images, draws)]
        x = torch.cat(views)
        alpha = self.alpha(x) if self.alpha is not None else None
        features = self.model(x, alpha).to(self.precision)
        parts = list(features.split(len(images)))
        losses = self.method(parts, labels, views)
        terms = [value for value in losses.values() if value.requires_grad]
        total = torch.stack(terms).sum() / self.how.accumulate
        self.fabric.backward(total)
        row["loss"] += float(total.detach())
        for name, value in losses.items():
            row[name] = row.get(name, 0.0) + float(value.detach()) / self.how.accumulate
        if alpha is not None:
            row["alpha"] = row.get("alpha", 0.0) + float(gather(alpha).mean()) / self.how.accumulate
        row["spread"] = spread(gather(parts[0].detach())) / self.spread

    def _batch(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's part of a batch: images in [0, 1], draws and labels; the next one is cut meanwhile."""
        pending = getattr(self, "pending", None)
        now = pending[1].result() if pending and pending[0] == position else self._cut(position)
        self.pending = position + 1, self.reader.submit(self._cut, position + 1)
        crops, draws, labels = now
        images = torch.from_numpy(crops).to(self.fabric.device).permute(0, 3, 1, 2).float().div_(255)
        return images, draws, torch.from_numpy(labels).to(self.fabric.device)

    def _cut(self, position: int) -> tuple[np.ndarray, Tensor, np.ndarray]:
        mine, epochs = (rank_slice(one, rank(), world_size()) for one in self.stream.at(position))
        crops = crop(self.faces.images[mine], self.faces.landmarks[mine], self.teacher.template, self.teacher.input_px)
        return crops, augment.keyed_draws(self.seed, epochs, mine), self.faces.identities[mine]

    def _share_head_gradients(self) -> None:
        """The mean over processes: they are equal but for rounding, and must stay so (a sharded head's are its own)."""
        if world_size() == 1:
            return
        sharded = {p for m in self.method.modules() if isinstance(m, PartialFC) for p in m.parameters()}
        for parameter in self.method.parameters():
            if parameter.grad is not None and parameter not in sharded:
                parameter.grad = all_sum(parameter.grad) / world_size()

    def _healthy(self, row: Row) -> None:
        if not math.isfinite(row["loss"]):
            raise UserError(f"the loss became {row['loss']} at step {row['step']:.0f}; lower lr ({self.how.lr:g})")
        if row["spread"] < COLLAPSED and row["step"] > 1:
            raise UserError(
                f"all features collapsed to one point at step {row['step']:.0f} (their spread fell to "
                f"{100 * row['spread']:.0f}% of the teacher's own): the teacher tells nobody apart any more. "
                f"Lower lr ({self.how.lr:g}), or raise the margin"
            )


def spread(features: Tensor) -> float:
    """Root mean square distance of unit features (N, D) from their mean, in [0, 1]."""
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())


def _moments(steps: int, checks: int) -> set[int]:
    return {round(steps * (i + 1) / checks) for i in range(checks)} if checks else set()


def _seed(seed: int, key: int) -> int:
    return int(np.random.SeedSequence([seed, key]).generate_state(1, np.uint64)[0] >> np.uint64(1))
