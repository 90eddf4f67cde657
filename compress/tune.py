"""The teacher stage's fine-tuning: adapt the teacher to low resolution, and measure what one fixed alpha costs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from compress.data import load_parts
from compress.run import Run
from faces.align import crop
from faces.dataset import Faces
from faces.degrade import reduce
from faces.errors import UserError
from faces.files import whole
from faces.threads import cores, threads
from faces.verification import make_pairs
from teachers import lora, merging
from teachers.alpha import ALPHA
from teachers.ensemble import Ensemble
from teachers.fabric import create_fabric
from teachers.finetune import CURVE, TUNED, finetune_teacher, resolution_check
from teachers.loop import check_unadapted
from teachers.methods.base import kind_of
from teachers.teacher import Teacher
from teachers.tuned import apply_tuned

TUNED_FILE, CURVE_FILE = "teacher.safetensors", "finetune.csv"
_MEASURED = 32
"""Faces on which the price of one fixed alpha is measured."""


def check_trainable(teacher: Teacher | Ensemble) -> Teacher:
    """The teacher; UserError where it cannot be fine-tuned."""
    if isinstance(teacher, Ensemble):
        raise UserError(
            "an ensemble is not fine-tuned as one: fine-tune each member with python -m teachers.finetune and "
            "give the files with --teacher-weights FILE+FILE"
        )
    if not teacher.trainable:
        raise UserError(f"{teacher.name} is frozen and cannot be fine-tuned: give --teacher-method none")
    check_unadapted(teacher)
    return teacher


def tune(run: Run, teacher: Teacher | Ensemble, base: str | Path | None) -> dict[str, Any]:
    """Fine-tune `teacher` in place, resumably; writes teacher.safetensors and finetune.csv; facts for the report.

    UserError for a teacher that cannot be fine-tuned.
    """
    how = run.config.teacher.finetune
    teacher = check_trainable(teacher)
    train, test = load_parts(run)
    # Virtual faces have no label, but are nobody: taken for people of their own they would be told apart from the two
    # whose average they are.
    real = train.subset(np.arange(run.facts("data")["split"]["train_faces"]))
    faces = real if how.unlabelled else real.subset(real.labelled)
    folder = run.path(f"work/finetune-{run.key}")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / TUNED).is_file():
        apply_tuned(teacher, folder / TUNED)
    else:
        how_many, folds = run.config.teacher.check_pairs, run.config.evaluate.folds
        pairs = make_pairs(test.identities, run.config.seed, how_many, folds)
        fabric = create_fabric(run.config.device, folder=folder)
        with run.progress(f"fine-tune by {how.method}", how.steps) as advance, threads(cores()):
            finetune_teacher(
                teacher, faces, how, run.config.seed, folder, fabric, base=base,
                progress=lambda count, _: advance(count), check=resolution_check(test, pairs),
                checks=run.config.teacher.checks,
            )  # fmt: skip
    for kept, name in ((TUNED, TUNED_FILE), (CURVE, CURVE_FILE)):
        with whole(run.path(name)) as temporary:
            shutil.copyfile(folder / kept, temporary)
    facts: dict[str, Any] = {"steps": how.steps, "trained": _trained(teacher)}
    if kind_of(how.method).needs_alpha:
        told = json.loads((folder / ALPHA).read_text())
        facts["alpha_percentiles"] = told["percentiles_5_50_95"]
        with threads(cores()):
            facts["fixed_alpha"] = price_of_one_alpha(teacher, test)
    return facts


def _trained(teacher: Teacher) -> int:
    """How many parameters the fine-tuning changed: the adapters', or all."""
    named = [(name, parameter.numel()) for name, parameter in teacher.backbone.named_parameters()]
    adapters = sum(count for name, count in named if lora.is_adapter(name))
    return adapters or sum(count for _, count in named)


def price_of_one_alpha(teacher: Teacher, faces: Faces) -> dict[str, Any]:
    """What merging the adapters at one alpha, the mean over full-size faces, costs against each image's own.

    Returns that alpha, the largest difference between the merged and the unmerged network at it (rounding alone),
    and the least and mean cosine of the merged network's embeddings to those by each image's alpha, at full size and
    16 px.
    """
    chosen = faces.subset(np.random.default_rng(0).permutation(len(faces))[:_MEASURED])
    crops = crop(chosen.images, chosen.landmarks, teacher.template, teacher.input_px)
    alpha = float(merging.alphas(teacher, crops).mean())
    merged, unmerged = merging.merged(teacher, alpha), merging.at_alpha(teacher, alpha)
    apart = float(np.abs(merged.embed(crops) - unmerged.embed(crops)).max())
    by_px = {}
    for px in (None, 16):
        small = reduce(crops, px, teacher.input_px)
        a, b = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (merged.embed(small), teacher.embed(small)))
        cosine = (a * b).sum(1)
        by_px["full" if px is None else f"{px} px"] = {"least": float(cosine.min()), "mean": float(cosine.mean())}
    return {"alpha": round(alpha, 4), "merge_max_abs": apart, "by_px": by_px}
