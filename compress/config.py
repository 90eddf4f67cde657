"""One frozen, validated configuration: preset, then `--config FILE.toml`, then options, then `--set key=value`."""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from export.merge import check_policy
from faces.degrade import Degradation
from faces.errors import UserError
from students.batches import Recipe
from teachers.registry import default_method
from teachers.settings import DEFAULTS, Finetune, Listed, Maybe, check_settings, refuse_idle

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Sizes = Annotated[Listed[tuple[Annotated[int, Field(ge=1)], ...]], Field(min_length=1)]
Formats = Annotated[Listed[tuple[Literal["onnx", "tflite", "tensorrt", "tensorrt-rtx"], ...]], Field(min_length=1)]
Precisions = Annotated[Listed[tuple[Literal["fp32", "fp16", "int8"], ...]], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=_STRICT)
class Data:
    """public: what to train on (`orl`, folders, tar shards); val: a test set of its own instead of the split;
    pairs: a CSV of fixed test pairs; detector: `dlib` or `yunet:FILE`; aligned: the images are ArcFace crops
    already; test_share: share of identities held out; virtual: averages of two training faces that are added,
    unlabelled; allow_leaks: go on when val is not independent."""

    public: Annotated[Listed[tuple[str, ...]], Field(min_length=1)] = ("orl",)
    val: Maybe[str] = None
    pairs: Maybe[str] = None
    detector: str = "dlib"
    aligned: bool = False
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    virtual: Annotated[int, Field(ge=0)] = 2000
    allow_leaks: bool = False


@dataclass(frozen=True, config=_STRICT)
class Teacher:
    """weights: a file or `hub`; mirror: the target of a face is the mean of its feature and its mirror image's, at
    twice the time; finetune: how it is adapted to low resolution (`teachers/settings.py`; its method is
    --teacher-method); views: forward passes that a bootstrap may spend on the public faces; checks: times that the
    fine-tuning measures its accuracy by resolution on `check_pairs` test pairs."""

    name: str = "swin_b"
    weights: Maybe[str] = None
    mirror: bool = False
    finetune: Finetune = field(default_factory=Finetune)
    views: Annotated[int, Field(ge=10, le=3000)] = 1200
    checks: Annotated[int, Field(ge=0)] = 2
    check_pairs: Annotated[int, Field(ge=20)] = 100


@dataclass(frozen=True, config=_STRICT)
class Adapt:
    """Step 1, cross-dataset distillation.

    balance, temperature: lambda and T of eqs. 1 and 3, which the paper does not state. keep: weight of a term of
    ours that keeps the teacher's similarities between faces: the softmax over a few public identities says little
    of other people. steps, batch, lr, weight_decay: AdamW, for the re-fitted softmax and then for the module.
    """

    balance: Annotated[float, Field(ge=0)] = 1.0
    keep: Annotated[float, Field(ge=0)] = 10.0
    temperature: Annotated[float, Field(gt=0)] = 4.0
    steps: Annotated[int, Field(ge=1)] = 600
    batch: Annotated[int, Field(ge=2)] = 256
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2


@dataclass(frozen=True, config=_STRICT)
class Distill(Recipe):
    """Step 2, resolution-adapted distillation: the recipe of the student's training, and its mode.

    mode: c = labels only, s = adapted target only, dc = labels and the teacher's own feature, sc = labels and
    adapted target. class_loss: what the labels are learnt by (the paper's Table IV). sizes: of the input in px,
    mixed in training, so that one student serves them all (tiny students take any multiple of 8); none =
    the student's own. weights: a safetensors file to start from, or `zoo`: the package's own; with samples=0 they stay
    as they are, and the run exports, proves and measures them. margin: share of the crop kept around the template.
    threads: of the CPU; two train faster than one where both cores are idle, and their student has other bytes.
    optimiser: adamw; muon, which learns more from as many faces (needs the package's timm extra); sgd, the paper's.
    """

    student: str = "tiny16"
    mode: Literal["c", "s", "dc", "sc"] = "sc"
    weights: Maybe[str] = None
    margin: Annotated[float, Field(ge=0, le=0.5)] = 0.125
    samples: Annotated[int, Field(ge=0)] = 300_000
    batch: Annotated[int, Field(ge=2)] = 256
    optimiser: Literal["adamw", "muon", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-3
    loss: Literal["relational", "regression"] = "relational"
    temperature: Annotated[float, Field(gt=0)] = 10.0
    class_loss: Literal["softmax", "center", "sphereface", "sphereface+", "cosface", "arcface"] = "softmax"
    weight_decay: Annotated[float, Field(ge=0)] = Recipe.weight_decay
    warmup: Share = Recipe.warmup
    class_weight: Annotated[float, Field(ge=0)] = Recipe.class_weight
    mimic_weight: Annotated[float, Field(ge=0)] = Recipe.mimic_weight
    pretrain: Share = Recipe.pretrain
    average: Annotated[float, Field(ge=0, lt=1)] = Recipe.average
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: Annotated[int, Field(ge=1)] = Recipe.threads
    versions: Annotated[int, Field(ge=0)] = 0
    sizes: Listed[tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...]] = ()
    degradation: Degradation = field(default_factory=Degradation)

    @property
    def trains(self) -> bool:
        """Else nothing learns from the teacher or the faces: the student's weights stay what was given."""
        return self.samples > 0


@dataclass(frozen=True, config=_STRICT)
class Export:
    """formats and precisions of the student's files; mirror: the same files again with the embedding of the mirror
    image added (student-mirror.*), twice the work; teacher: export the teacher too (--export-teacher), in
    teacher_formats and teacher_precisions; alpha: of a teacher with twin adapters (`export/merge.py`);
    allow_parity_failure: keep files that miss their tolerance."""

    formats: Formats = ("onnx", "tflite")
    precisions: Precisions = ("fp32",)
    mirror: bool = False
    teacher: bool = False
    teacher_formats: Formats = ("onnx",)
    teacher_precisions: Precisions = ("fp32", "fp16")
    alpha: Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(check_policy)] = "mean"
    allow_parity_failure: bool = False


@dataclass(frozen=True, config=_STRICT)
class Evaluate:
    """px: resolutions of same@p and cross@p; most: genuine (and impostor) pairs at most; folds: of the accuracy."""

    # Above any teacher's input; a few digits too many would ask for terabytes.
    px: Annotated[Listed[tuple[Annotated[int, Field(ge=1, le=1024)], ...]], Field(min_length=1)] = (32, 16, 8)
    most: Annotated[int, Field(ge=10)] = 3000
    folds: Annotated[int, Field(ge=2)] = 10


@dataclass(frozen=True, config=_STRICT)
class Benchmark:
    batches: Sizes = (1, 32, 256)
    threads: Annotated[int, Field(ge=1)] = 1
    windows: Annotated[int, Field(ge=10)] = 10


@dataclass(frozen=True, config=_STRICT)
class Config:
    preset: Literal["quick", "standard", "paper"] = "quick"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: str = "cpu"
    data: Data = field(default_factory=Data)
    teacher: Teacher = field(default_factory=Teacher)
    adapt: Adapt = field(default_factory=Adapt)
    distill: Distill = field(default_factory=Distill)
    export: Export = field(default_factory=Export)
    evaluate: Evaluate = field(default_factory=Evaluate)
    benchmark: Benchmark = field(default_factory=Benchmark)


PRESETS: dict[str, dict[str, Any]] = {
    # The embedded ORL faces: minutes on two cores, also where --teacher-method asks for a handful of steps.
    "quick": {
        "teacher": {"finetune": {"steps": 20, "batch": 16, "quality_steps": 60}, "checks": 1, "check_pairs": 20},
    },
    # The user's own faces: more samples, and little weight on telling the few known people apart, which costs what
    # the teacher says of everybody else (python -m compress.study modes --table recipe).
    "standard": {
        "data": {"virtual": 0},
        "distill": {"samples": 6_000_000, "class_weight": 0.1},
        "adapt": {"steps": 3000},
    },
    # Section III-D and IV of the paper: SGD at .001, batch 256, 16 fixed versions a face, squared regression,
    # labels first (the paper pre-trains on labels for a share that it does not state).
    "paper": {
        "data": {"virtual": 0},
        "distill": {
            "samples": 58_000_000,
            "batch": 256,
            "optimiser": "sgd",
            "lr": 1e-3,
            "versions": 16,
            "loss": "regression",
            "pretrain": 0.2,
            "weight_decay": 0.0,
        },
        "adapt": {"steps": 3000, "keep": 0.0},
    },
}


def load_config(preset: str, file: str | None, options: dict[str, Any], settings: Iterable[str], **top: Any) -> Config:
    """Merge and validate. `options` are dotted keys with values (as are `top`), `settings` strings `key=value`.

    UserError: an unreadable TOML file, an unknown key (the nearest known one is named), a value out of range.
    """
    own: dict[str, Any] = {}
    if file is not None:
        try:
            _merge(own, tomllib.loads(Path(file).read_text()))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
            raise UserError(f"{file} cannot be read as a TOML configuration: {problem}") from None
    for key, value in {**top, **options}.items():
        if value is not None:
            _put(own, key, value)
    said = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        said.append(key.strip())
        if not equals:
            raise UserError(f"--set takes key=value, got {setting!r}")
        _put(own, key.strip(), _parse(text.strip()))
    merged: dict[str, Any] = {"preset": preset}
    _merge(merged, PRESETS[preset])
    _merge(merged, own)
    _check_keys(merged)
    _complete_finetune(merged)
    if merged["preset"] != preset:
        raise UserError(f"the preset is chosen with --preset {merged['preset']}, not in a file or with --set")
    try:
        config = TypeAdapter(Config).validate_python(merged)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{key} = {first['input']!r}: {first['msg'].lower()}") from None
    _check_words(merged, config)
    check_settings(config.teacher.finetune)
    how = own.get("teacher", {}).get("finetune", {})
    if how and "method" not in how and config.teacher.finetune.method == "none":
        key = f"teacher.finetune.{next(iter(how))}"
        raise UserError(f"{key} changes nothing without a fine-tuning: give --teacher-method too")
    # A file may keep the settings of several methods.
    prefix = "teacher.finetune."
    refuse_idle(config.teacher.finetune, [key.removeprefix(prefix) for key in said if key.startswith(prefix)])
    return config


def _complete_finetune(merged: dict[str, Any]) -> None:
    """Fill in the method's own settings below what was given; the default method depends on preset and teacher."""
    teacher = merged.setdefault("teacher", {})
    given = teacher.setdefault("finetune", {})
    if "method" not in given:
        quick = merged["preset"] == "quick"
        name, weights = str(teacher.get("name", Teacher.name)), teacher.get("weights")
        # Anything else is told when the whole is read.
        file = weights if isinstance(weights, str) and weights != "none" else None
        given["method"] = "none" if quick else default_method(name, file)
    teacher["finetune"] = {**DEFAULTS.get(str(given["method"]), {}), **given}


def as_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def known_keys(value: Any = None, prefix: str = "") -> list[str]:
    """All dotted keys of the configuration, sorted."""
    keys = []
    for key, inner in as_dict(value or Config()).items() if not isinstance(value, dict) else value.items():
        keys += known_keys(inner, f"{prefix}{key}.") if isinstance(inner, dict) else [prefix + key]
    return sorted(keys)


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copy(value)


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _put(into: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        into = into.setdefault(key, {})
        if not isinstance(into, dict):
            raise UserError(f"{dotted!r} goes below a plain value; known keys: {', '.join(known_keys())}")
    _merge(into, {last: value})


def _parse(text: str) -> Any:
    """TOML's own values; anything else is a string, so `--set distill.loss=regression` needs no quotes."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise UserError(f"--set {text:.20}...: nested too deeply") from None


def _check_keys(merged: dict[str, Any]) -> None:
    known = known_keys()
    for key in _flat(merged):
        if key not in known:
            last = {name.rpartition(".")[2]: name for name in known}
            near = difflib.get_close_matches(key, known, 1, 0.5)
            near = near or [last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, 1, 0.5)]
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"unknown setting {key!r}{hint} (known: {', '.join(known)})")


def _check_words(given: dict[str, Any], config: Any, prefix: str = "") -> None:
    """UserError for what pydantic lets pass: nothing, as of an unset shell variable, and a yes or no as a number."""
    for key, value in given.items():
        read = getattr(config, key)
        if isinstance(value, dict):
            _check_words(value, read, f"{prefix}{key}.")
        elif "" in (value if isinstance(value, list | tuple) else [value]):
            raise UserError(f"{prefix}{key} is empty: leave it out, or give it a value")
        elif isinstance(value, bool) and not isinstance(read, bool):
            raise UserError(f"{prefix}{key} = {str(value).lower()}: it takes a number")


def _flat(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, inner in values.items():
        keys += _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else [prefix + key]
    return keys
