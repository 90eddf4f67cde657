"""Settings that do nothing beside the others: whoever gives one must hear so before the run, not guess afterwards."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import reduce
from typing import Any

from compress.config import Adapt, Config, Distill, load_config
from faces.errors import UserError
from teachers.registry import is_stand_in

# What the export's int8 ranges and fine-tuning are made by is not among them.
_TEACHING = " ".join(
    ["data.virtual", "teacher.mirror", *(f"adapt.{one.name}" for one in fields(Adapt))]
    + [f"distill.{one.name}" for one in fields(Distill)
       if one.name not in ("student", "weights", "samples", "margin", "degradation")]
)  # fmt: skip
# Keys, when nothing reads them, and why.
_IDLE: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("distill.loss distill.temperature distill.mimic_weight distill.pretrain",
     lambda c: c.distill.mode == "c", "distill.mode=c learns from labels alone"),
    ("distill.class_loss distill.class_weight distill.pretrain",
     lambda c: c.distill.mode == "s", "distill.mode=s learns from the teacher alone"),
    ("distill.temperature",
     lambda c: c.distill.loss == "regression", "distill.loss=regression has no temperature"),
    ("distill.warmup",
     lambda c: c.distill.optimiser == "sgd", "distill.optimiser=sgd has a constant rate"),
    (_TEACHING,
     lambda c: not c.distill.trains, "distill.samples=0 trains nothing"),
    ("distill.threads", lambda c: c.device != "cpu", "the student is trained on the GPU"),
    ("data.test_share", lambda c: c.data.val is not None, "--val (data.val) is the test set"),
    ("evaluate.most", lambda c: c.data.pairs is not None, "data.pairs fixes the pairs"),
    # Of a fine-tuning's checks, whose pairs are drawn, they are the folds all the same.
    ("evaluate.folds",
     lambda c: c.data.pairs is not None and c.teacher.finetune.method == "none", "data.pairs fixes the folds"),
    ("adapt.balance adapt.keep adapt.temperature adapt.batch adapt.lr adapt.weight_decay",
     lambda c: c.distill.mode in ("c", "dc"), "no student of mode c or dc learns the adapted feature"),
    ("export.teacher_formats export.teacher_precisions export.alpha",
     lambda c: not c.export.teacher, "the teacher is exported with --export-teacher alone"),
    ("teacher.checks teacher.check_pairs",
     lambda c: c.teacher.finetune.method == "none", "without --teacher-method the teacher stays as it is"),
    ("teacher.views",
     lambda c: not is_stand_in(c.teacher.name, c.teacher.weights), "this teacher has weights: no bootstrap is fitted"),
)  # fmt: skip


def refuse_idle(configs: Sequence[Config], settings: Iterable[str], spared: Iterable[str] = ()) -> None:
    """UserError for one of --set's `settings` (key=value) that nothing reads in any of the configurations, beside what
    else is set there, and that is not what it is in their preset. A TOML file may keep the settings of several runs.
    `spared`: keys that something else reads."""
    plain = load_config(configs[0].preset, None, {}, ())
    for key in (setting.partition("=")[0].strip() for setting in settings):
        found = [[why for keys, idle, why in _IDLE if key in keys.split() and idle(one)] for one in configs]
        if key not in spared and all(found) and _value(configs[0], key) != _value(plain, key):
            raise UserError(f"--set {key} changes nothing here: {found[0][0]}; leave it out")


def _value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)
