"""What scores on the fixed pairs of unseen people say: accuracy, TPR at one FPR, intervals, paired differences."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.output import cell, gap_cell
from compress.config import Config
from compress.distill import start_student
from compress.run import progress_bar
from compress.teach import embed
from faces.dataset import Faces
from faces.errors import UserError
from faces.files import fingerprint, whole
from faces.intervals import people_interval
from faces.parts import Part, roc_of
from faces.threads import cores, threads
from faces.verification import Pairs, correct_by_fold
from students.registry import create_student
from students.train import check_sizes
from teachers.names import members
from teachers.registry import create_teacher, is_stand_in, weight_files

FPR = 0.1
"""Bridge distillation, section IV-B, states the true positive rate at this false positive rate."""
SEEDS = 20
"""The seeds that a study's tables look for: from 0 on, so many."""
METRICS = {"accuracy": "", "tpr": f", TPR at FPR {FPR:.0%}"}


def check_models(config: Config, teachers: Iterable[str], read_only: bool = False) -> None:
    """UserError for a student or a teacher that a study cannot have, told before it reads any face. `read_only`: no
    weights will be read, the student's name alone is looked at."""
    check_sizes(create_student(config.distill.student), config.distill)
    if not read_only:
        start_student(config.distill, 0)
        for teacher in dict.fromkeys(teachers):
            check_trained(teacher)
            create_teacher(teacher)


def check_unused(config: Config, plain: Config) -> None:
    """UserError for a setting that a study on fixed pairs does not read; plain: the configuration without --set."""
    for name in ("seed", "data", "teacher"):
        if getattr(config, name) != getattr(plain, name):
            raise UserError(f"--set {name}: the people, teachers and seeds of this study are its options; leave it out")
    for name in ("export", "evaluate", "benchmark"):
        if getattr(config, name) != getattr(plain, name):
            raise UserError(f"--set {name}: this study has no such stage, and its pairs are fixed; leave it out")


def check_trained(teacher: str) -> None:
    """UserError where a bootstrap would stand in, which a study does not fit."""
    for one, _ in members(teacher, None):
        if is_stand_in(one):
            raise UserError(f"{one} has no weights here, and a study fits no bootstrap: name another teacher")


def teacher_features(teacher: str, faces: Faces, folder: Path, mirror: bool = False) -> np.ndarray:
    """Of the faces at full size, (N, D) float32, with `mirror` the mean with their mirror images'; kept in `folder`,
    where the tables of modes find them too, and computed anew where the teacher's file holds other bytes.

    UserError on an unknown teacher or one that cannot be read.
    """
    key = fingerprint([teacher, faces.state(), *(["mirror"] if mirror else [])], weight_files(teacher))
    cache = folder / f"features-{key}.npy"
    if not cache.is_file():
        bar = progress_bar(Console(stderr=True), f"features of {len(faces)} faces", len(faces))
        with bar as advance, threads(cores()), whole(cache) as temporary:
            np.save(temporary.open("wb"), embed(create_teacher(teacher), faces, mirror, advance))
    return np.load(cache, allow_pickle=False).astype(np.float32)


def pair_values(scores: np.ndarray, pairs: Pairs) -> dict[str, np.ndarray]:
    """A value for each pair (P,), by metric, whose mean over the pairs is the metric.

    accuracy: right at the other folds' threshold, or not. tpr: of genuine pairs whether they are accepted where one
    impostor in ten is, divided by the share of genuine pairs; of impostors 0.
    """
    threshold = roc_of(scores, pairs).threshold_at(FPR)
    found = {"accuracy": correct_by_fold(scores, pairs).astype(float)}
    # Fewer than a hundred impostors do not resolve that rate.
    if threshold is not None:
        found["tpr"] = (pairs.same & (scores >= threshold)) / pairs.same.mean()
    return found


def mean_values(seeds: Sequence[np.ndarray], pairs: Pairs) -> dict[str, np.ndarray]:
    """`pair_values`, mean over the scores of several seeds."""
    each = [pair_values(scores, pairs) for scores in seeds]
    return {metric: np.mean([one[metric] for one in each], axis=0) for metric in each[0]}


def summary(
    values: dict[str, np.ndarray], baseline: dict[str, np.ndarray] | None, part: Part
) -> dict[str, dict[str, Any]]:
    """By metric: `points` and `ci95` in percent and, where there is a baseline, the same of the paired difference,
    `against_baseline`. Intervals: `pair_interval`, the threshold held."""
    found = {}
    for metric, mine in values.items():
        found[metric] = part.interval(mine)
        if baseline is not None and metric in baseline:
            found[metric]["against_baseline"] = part.interval(mine - baseline[metric])
    return found


def two_cells(one: dict[str, Any] | None) -> tuple[str, str]:
    """What a metric of `summary` says, and its paired difference from the baseline."""
    return cell(one), gap_cell((one or {}).get("against_baseline"))


def people_summary(values: np.ndarray, baseline: np.ndarray | None, people: np.ndarray) -> dict[str, Any]:
    """As a metric of `summary`, of values of faces (M,) whose people (M,) are resampled."""
    found = _by_people(values, people)
    return found if baseline is None else found | {"against_baseline": _by_people(values - baseline, people)}


def _by_people(values: np.ndarray, people: np.ndarray) -> dict[str, Any]:
    return {"points": 100 * float(values.mean()), "ci95": [100 * end for end in people_interval(values, people)]}
