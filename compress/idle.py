"""Settings that do nothing beside the others: whoever gives one must hear so before the run, not guess afterwards."""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import TYPE_CHECKING, Any

from faces.errors import UserError
from teachers.registry import is_stand_in

if TYPE_CHECKING:
    from compress.config import Config

# Keys, when nothing reads them, and why.
_IDLE: tuple[tuple[str, "Callable[[Config], bool]", str], ...] = (
    ("distill.loss distill.temperature distill.mimic_weight distill.pretrain",
     lambda c: c.distill.mode == "c", "distill.mode=c learns from labels alone"),
    ("distill.class_loss distill.class_weight distill.pretrain",
     lambda c: c.distill.mode == "s", "distill.mode=s learns from the teacher alone"),
    ("distill.temperature",
     lambda c: c.distill.loss == "regression", "distill.loss=regression has no temperature"),
    ("distill.warmup",
     lambda c: c.distill.optimiser == "sgd", "distill.optimiser=sgd has a constant rate"),
    ("data.test_share", lambda c: c.data.val is not None, "--val (data.val) is the test set"),
    ("evaluate.most evaluate.folds", lambda c: c.data.pairs is not None, "data.pairs fixes pairs and folds"),
    ("export.teacher_formats export.teacher_precisions export.alpha",
     lambda c: not c.export.teacher, "the teacher is exported with --export-teacher alone"),
    ("teacher.checks teacher.check_pairs",
     lambda c: c.teacher.finetune.method == "none", "without --teacher-method the teacher stays as it is"),
    ("teacher.views",
     lambda c: not is_stand_in(c.teacher.name, c.teacher.weights), "this teacher has weights: no bootstrap is fitted"),
)  # fmt: skip


def refuse_idle(config: "Config", plain: "Config", given: Iterable[str]) -> None:
    """UserError for a dotted key among `given` that nothing reads beside the other settings, and that is not what it
    is in `plain`, the preset's own."""
    for key in given:
        for keys, idle, why in _IDLE:
            if key in keys.split() and _value(config, key) != _value(plain, key) and idle(config):
                raise UserError(f"--set {key} changes nothing here: {why}; leave it out")


def _value(config: "Config", key: str) -> Any:
    return reduce(getattr, key.split("."), config)
