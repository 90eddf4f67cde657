"""How a teacher is fine-tuned: one frozen set of settings for every method, validated in one place."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from faces.errors import UserError


def _none(value: Any) -> Any:
    return None if value == "none" else value


def _listed(value: Any) -> Any:
    """`7,14` and 7 as lists; `none` is an empty one."""
    if isinstance(value, str):
        return [] if value == "none" else [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as problem:
        raise UserError(f"{text:.60} is no regular expression of layers' names ({problem})") from None
    return text


T = TypeVar("T")
# As --set can say them in one word.
Maybe = Annotated[T | None, BeforeValidator(_none)]
Listed = Annotated[T, BeforeValidator(_listed)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[float, Field(ge=1)]
MethodName = Literal["none", "full", "lora", "petalface", "octuplet", "qgface"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Finetune:
    """steps: optimiser steps; batch: images a step over all processes (octuplet: two of each person; each image is
    seen in one view, by octuplet and qgface in two); accumulate: micro-batches a step, whose losses do not see each
    other. optimiser, lr, weight_decay, warmup (share of the steps), clip (norm of the backbone's gradient; 0 =
    off): the rate then falls linearly to zero (the papers' polynomial of power 1). relative: each tensor's rate is lr
    times the root mean square of its weights, as in Adafactor: in a network without batch norms, as dlib's with its
    affine layers folded, weights differ 70-fold in size from layer to layer. average: decay of the moving
    average of the weights that the teacher ends with (0 = the last weights; not with fsdp). interpolate: share of the
    way from the weights before to these at which the teacher ends (Wortsman et al. 2022, WiSE-FT; none of the face
    papers does it): below 1 it forgets less (1 = all of it; of adapters, each of their matrices; not with fsdp).
    train_batch_norm: batch norms use and learn the batch's statistics; else they stay frozen in evaluation mode.

    full, lora, petalface: head (margin loss), margin, scale (None = the loss's own), head_from (where its class
    weights start: the mean embedding of each person's first faces, or random numbers, as published), center:
    weight of the center loss; low_share: share of the images that are reduced to a random size in `low_px` (px of
    the teacher's own crop, log-uniform). rank, lora_scale, dropout, twin, single: adapters and the patterns of the
    layers they go to (None = the backbone's own); quality: what gives alpha (`fitted`, a pyiqa metric, a file of
    `faces.quality`); quality_steps: to fit one; sample_rate: share of the other people's class weights that a step
    sees (PartialFC; 1 = the plain head).

    octuplet: terms, distance, normalise and triplet_margin (None: the paper's 25 scaled to this teacher's feature
    norm), sizes (px of the low-resolution copies, mixed in a batch; of the teacher's own crop), copies
    (low-resolution copies of each image a step, each of another size; the paper has one), anchor
    (weight of the distance of both copies from the feature before fine-tuning; 0 = the paper's loss), relational
    (weight of keeping both copies where that feature lay among other people's), unlabelled (faces of nobody known
    beside each batch), singles (each of these is taken for a person of its own; else anchor and relational alone hold
    them).

    qgface: augmentation; gate (threshold on quality (z + 1) / 2, None = no partition), partition (drop low-quality
    images from the classification), contrastive (queue; none = no contrastive loss), contrastive_weight, both_views
    (see each face also as it is; without it there is no contrastive loss either).
    """

    method: MethodName = "none"
    steps: Count = 300
    batch: Annotated[int, Field(ge=2)] = 48
    accumulate: Count = 1
    optimiser: Literal["adamw", "sgd", "adagrad"] = "adamw"
    lr: Positive = 5e-4
    relative: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup: Share = 0.05
    clip: Annotated[float, Field(ge=0)] = 5.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    interpolate: Annotated[float, Field(gt=0, le=1)] = 1.0
    train_batch_norm: bool = False
    head: Literal["softmax", "sphereface", "cosface", "arcface", "adaface"] = "cosface"
    margin: Maybe[Annotated[float, Field(ge=0)]] = None
    scale: Maybe[Positive] = None
    head_from: Literal["means", "random"] = "means"
    center: Annotated[float, Field(ge=0)] = 0.0
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    low_share: Share = 0.75
    low_px: Listed[tuple[Pixels, Pixels]] = (7.0, 56.0)
    rank: Count = 8
    lora_scale: Positive = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    twin: Maybe[Pattern] = None
    single: Maybe[Pattern] = None
    quality: str = "fitted"
    quality_steps: Count = 300
    terms: Annotated[Listed[tuple[Literal["hhh", "hll", "lhh", "lll"], ...]], Field(min_length=1)] = (
        "hhh", "hll", "lhh", "lll",
    )  # fmt: skip
    distance: Literal["euclidean", "squared", "cosine"] = "euclidean"
    normalise: bool = False
    triplet_margin: Maybe[Positive] = None
    sizes: Annotated[Listed[tuple[Count, ...]], Field(min_length=1)] = (7, 14, 28)
    copies: Count = 1
    anchor: Annotated[float, Field(ge=0)] = 0.0
    relational: Annotated[float, Field(ge=0)] = 0.0
    unlabelled: Annotated[int, Field(ge=0)] = 0
    singles: bool = True
    augmentation: Literal["none", "adaface", "ours"] = "ours"
    gate: Maybe[Share] = 0.2
    partition: bool = True
    contrastive: Literal["none", "batch", "momentum", "proxy"] = "proxy"
    contrastive_weight: Annotated[float, Field(ge=0)] = 1.0
    both_views: bool = True


# What differs from the defaults above; the papers' own optimisers are `--set optimiser=...`. Octuplet has the recipe of
# its measured row (benchmarks/results/teachers/octuplet.md) but for the margin, which follows the teacher's features.
DEFAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "full": {"lr": 2e-5, "batch": 64},
    "lora": {"batch": 64},
    "petalface": {"batch": 64},
    "octuplet": {"steps": 600, "batch": 16, "copies": 3, "lr": 2e-4, "weight_decay": 0.0, "anchor": 2.0},
    "qgface": {"lr": 2e-5, "weight_decay": 5e-4, "head": "adaface"},
}

_ALL = (
    "method steps batch accumulate optimiser lr relative weight_decay warmup clip average interpolate train_batch_norm "
)
_CLASSES = _ALL + "head margin scale head_from "
_FULL = _CLASSES + "center sample_rate low_share low_px "
_LORA = _FULL + "rank lora_scale dropout twin single "
READS = {
    "full": _FULL,
    "lora": _LORA,
    "petalface": _LORA + "quality quality_steps",
    "octuplet": _ALL + "terms distance normalise triplet_margin sizes copies anchor relational unlabelled singles",
    "qgface": _CLASSES + "sample_rate augmentation gate partition contrastive contrastive_weight both_views",
}
"""What each method reads of `Finetune`."""


def finetune_settings(method: str, **changes: Any) -> Finetune:
    """The settings of a method, with changes; UserError on an unknown key or a value out of range."""
    if method not in DEFAULTS:
        raise UserError(f"unknown teacher method {method!r}. Known: {', '.join(DEFAULTS)}")
    try:
        how = TypeAdapter(Finetune).validate_python({"method": method, **DEFAULTS[method], **changes})
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join(field.name for field in dataclasses.fields(Finetune))
        hint = f" (known: {known})" if first["type"] in ("unexpected_keyword_argument", "extra_forbidden") else ""
        raise UserError(f"{key} = {first['input']!r}: {first['msg'].lower()}{hint}") from None
    check_settings(how)
    return how


def _sees_low(how: Finetune) -> bool:
    """Does octuplet look at low-resolution copies at all?"""
    return bool(how.terms != ("hhh",) or how.anchor or how.relational)


# Of those, keys that nothing reads beside another setting, and which.
_IDLE: tuple[tuple[str, Callable[[Finetune], bool], str], ...] = (
    ("sizes copies", lambda how: not _sees_low(how), "terms=hhh"),
    ("singles", lambda how: not how.unlabelled, "unlabelled=0"),
    ("quality_steps", lambda how: how.quality != "fitted", "a quality that is not fitted here"),
    ("low_px", lambda how: not how.low_share, "low_share=0"),
    ("contrastive contrastive_weight", lambda how: not how.both_views, "both_views=false"),
    ("contrastive_weight", lambda how: how.contrastive == "none", "contrastive=none"),
    ("gate", lambda how: not how.partition, "partition=false"),
)  # fmt: skip


def refuse_idle(how: Finetune, given: Iterable[str]) -> None:
    """UserError where a setting that the user has given is none that the method reads, or that it reads beside the
    others, and not what it was anyway."""
    reads, plain = READS.get(how.method, "").split(), Finetune(**{"method": how.method, **DEFAULTS[how.method]})
    for key in given:
        if not reads or getattr(how, key) == getattr(plain, key):
            continue
        if key not in reads:
            raise UserError(f"{key} changes nothing in {how.method}, which reads {', '.join(reads[1:])}")
        if why := [words for keys, idle, words in _IDLE if key in keys.split() and idle(how)]:
            raise UserError(f"{key} changes nothing beside {why[0]}; leave it out")


def check_settings(how: Finetune) -> None:
    """UserError where settings that are right one by one do not go together."""
    if how.train_batch_norm and how.method in ("lora", "petalface"):
        raise UserError("train_batch_norm: adapters go with frozen weights, whose statistics must stay as they are")
    if how.train_batch_norm and how.interpolate < 1:
        raise UserError("interpolate: the statistics that train_batch_norm learns fit no other weights; leave one out")
    if how.method == "octuplet" and how.batch < 4:
        raise UserError("batch: octuplet compares two images each of two people at least: 4 or more")
    copied = how.method == "octuplet" and _sees_low(how)
    if copied and how.copies > len(set(how.sizes)):
        raise UserError(
            f"copies: {how.copies} copies of a face, each of another size, and sizes names {len(set(how.sizes))}: set "
            f"copies={len(set(how.sizes))}, or give more sizes"
        )
    turns = [how.sizes[i:] + how.sizes[:i] for i in range(len(how.sizes))]
    if copied and any(len(set(turn[: how.copies])) < how.copies for turn in turns):
        raise UserError(
            f"sizes: the {how.copies} copies of a face take sizes that follow each other, the first after the last, "
            f"and two of {', '.join(map(str, how.sizes))} would be equal: put them in another order"
        )
    if how.unlabelled and how.method != "octuplet":
        raise UserError("unlabelled: octuplet alone learns from faces of nobody known")
    if how.unlabelled and not (how.singles or how.anchor or how.relational):
        raise UserError("unlabelled: without singles faces of nobody known need an anchor (anchor or relational > 0)")
