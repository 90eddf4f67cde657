"""The one training loop of a student: arrays of crops, targets and labels in, a trained student out.

It knows no teacher. A step depends on (seed, step) alone, so a run that was killed continues from its last
checkpoint to the same weights, bit for bit on the same machine and thread count.
"""

import copy
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from faces.dataset import Progress
from faces.distributed import gather, global_batch_norm, rank, world_size
from faces.errors import UserError
from faces.files import fingerprint, whole
from faces.memory import keep_freed_memory
from faces.threads import threads
from students.batches import Batches, Examples, Recipe, draw_seed
from students.heads import Heads
from students.losses import regression, relational
from students.optimise import create_optimiser
from students.student import Student


def train_student(
    student: Student,
    examples: Examples,
    recipe: Recipe,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    checkpoint_seconds: float = 10.0,
) -> list[dict[str, float]]:
    """Train `student` in place, in its own precision; it ends in evaluation mode on the CPU.

    Returns the curve: about 200 rows of step, lr, loss and its parts.

    `checkpoint` is written every `checkpoint_seconds` and read at the start where it exists. `progress` gets the
    number of steps just done or found done. Where torch.distributed runs, every process calls this with the same
    arguments, works on its share of each batch, and ends with the same student; the checkpoint is then in a folder
    that all can read. UserError: no target and no label, no step, input sizes that it does not take, a loss that is not
    finite, a checkpoint of another run, a batch that the processes cannot share.
    """
    if not len(examples.crops):
        raise UserError("the student has nothing to learn from: no training face")
    if not recipe.steps:
        raise UserError("distill.samples=0 trains nothing: give a number of faces to see")
    classes = 0 if examples.labels is None else int(examples.labels.max()) + 1
    width = 0 if examples.targets is None else examples.targets.shape[1]
    if not classes and not width:
        raise UserError("the student has nothing to learn from: no labelled face and no teacher target")
    if recipe.batch % world_size():
        raise UserError(
            f"a batch of {recipe.batch} faces cannot be shared by {world_size()} processes; set distill.batch"
        )
    check_sizes(student, recipe)
    torch.manual_seed(draw_seed(seed, 1))
    dtype = student.mimic.weight.dtype
    heads = Heads(classes, width, recipe.class_loss).to(device, dtype)
    working = copy.deepcopy(student).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    working = global_batch_norm(working).train()
    # Its hooks average the gradients of the ranks; that of a gathered feature is the sum over them.
    embed = DistributedDataParallel(working) if world_size() > 1 else working
    both = nn.ModuleList([working, heads])
    optimiser, schedule = create_optimiser(working, heads, recipe)
    smooth = AveragedModel(working, multi_avg_fn=_exponential(recipe.average), use_buffers=True)
    parts = {"both": both, "optimiser": optimiser, "schedule": schedule, "smooth": smooth}
    key = fingerprint([asdict(recipe), seed, examples.crops.shape, examples.margin, classes, width])
    start, curve = _restore(parts, checkpoint, key)
    if progress:
        progress(start)
    every = max(1, recipe.steps // 200)
    batches = Batches(examples, student.input_px, recipe, seed, device)
    saved = time.monotonic()
    with threads(recipe.threads), keep_freed_memory():
        for step in range(start, recipe.steps):
            images, targets, labels = batches.at(step)
            pretraining = step < recipe.pretrain * recipe.steps and classes > 0
            with torch.autocast(torch.device(device).type, torch.bfloat16, recipe.precision == "bf16"):
                feature = embed(images.to(dtype))
            feature = gather(feature.to(dtype))
            losses = _losses(
                feature, heads, None if pretraining or targets is None else targets.to(dtype), labels, recipe
            )
            loss = sum(losses.values(), start=torch.zeros((), device=device))
            optimiser.zero_grad()
            loss.backward()
            lr = float(schedule.get_last_lr()[0])
            optimiser.step()
            schedule.step()
            if recipe.average:
                smooth.update_parameters(working)
            if progress:
                progress(1)
            if (step + 1) % every == 0 or step + 1 == recipe.steps:
                if not math.isfinite(loss.item()):
                    raise UserError(f"the student's loss became {loss.item()} at step {step}; lower distill.lr")
                parts_now = {name: value.item() for name, value in losses.items()}
                curve.append({"step": step + 1, "lr": lr, "loss": loss.item(), **parts_now})
            if checkpoint and rank() == 0 and time.monotonic() - saved > checkpoint_seconds:
                _save(parts, checkpoint, key, step + 1, curve)
                saved = time.monotonic()
    student.load_state_dict((smooth.module if recipe.average else working).state_dict())
    student.eval()
    return curve


def takes_sizes(student: Student, sizes: Sequence[int]) -> bool:
    """Can it be trained for these input sizes?"""
    return student.any_size or set(sizes) <= {student.input_px}


def check_sizes(student: Student, recipe: Recipe) -> None:
    """UserError where the student does not take the recipe's input sizes."""
    if not takes_sizes(student, recipe.sizes):
        raise UserError(f"the student takes faces of {student.input_px} px alone: leave out distill.sizes")


def _exponential(decay: float) -> Callable[..., None]:
    """Makes the average the mean of the steps so far, each weighing `decay` times what the next one does: without the
    correction, which is Adam's, the first step would keep decay^n of the whole."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = int(count)
        get_ema_multi_avg_fn(decay * (1 - decay**n) / (1 - decay ** (n + 1)))(averaged, current, count)

    return update


def _losses(
    feature: Tensor, heads: Heads, targets: Tensor | None, labels: Tensor | None, recipe: Recipe
) -> dict[str, Tensor]:
    """Eq. 4: classification (eq. 5, or another loss of Table IV) and mimicking (eq. 6, or the relational loss), each
    with its weight."""
    losses = {}
    if labels is not None and heads.identity is not None:
        known = labels >= 0
        per_face = heads.identity(feature, labels)
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
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state["key"] != key:
            raise ValueError("its recipe, seed or data differ")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["step"], state["curve"]
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as problem:
        # torch's own message would advise to load the file with arbitrary code in it.
        reason = "it is damaged" if isinstance(problem, pickle.UnpicklingError) else problem
        raise UserError(f"{path} is no checkpoint of this run ({reason}); start again with --fresh") from None
