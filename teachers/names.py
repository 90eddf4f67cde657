"""What a teacher's name says besides the name: options behind a `?`, members joined by `+`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from faces.align import TEMPLATES
from faces.errors import UserError

OPTIONS = ("px", "template", "metric", "mean", "std", "colour")
"""What may stand behind the `?` of an ONNX file; the first three also behind a timm model's name."""


class Manner(TypedDict):
    """How a teacher's crops are cut and its embeddings compared."""

    template: str
    metric: Literal["cosine", "euclidean"]


def members(name: str, weights: str | Path | None) -> list[tuple[str, str | Path | None]]:
    """Each member of `a+b` with its part of the weights `FILE+FILE`, an empty part being None.

    A name without a plus is its own only member; its weights may then hold a plus. UserError where the
    numbers differ, a member is empty or one is named twice.
    """
    names = name.split("+")
    if len(names) == 1:
        return [(name, weights or None)]
    if not all(names):
        raise UserError(f"the ensemble {name!r} has a member without a name")
    if len(set(names)) < len(names):
        raise UserError(f"the ensemble {name!r} names a member twice")
    parts = [""] * len(names) if weights is None else str(weights).split("+")
    if len(parts) != len(names):
        raise UserError(
            f"the ensemble {name} needs {len(names)} weights, {weights!r} are {len(parts)}: join them by '+', with "
            f"nothing where a member brings its own, as in {'+'.join(['', *['FILE'] * (len(names) - 1)])}"
        )
    return [(one, part or None) for one, part in zip(names, parts, strict=True)]


def options(name: str, text: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """`FILE?mean=0,0,0&px=112` -> (FILE, its options); UserError on a missing FILE or an unknown option."""
    rest, _, query = text.partition("?")
    if not rest:
        raise UserError(f"{name!r} names nothing behind the colon")
    found = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise UserError(f"{name}: unknown option {part!r} (known: {', '.join(f'{one}=...' for one in known)})")
        found[key] = value
    return rest, found


def manner(found: Mapping[str, str]) -> Manner:
    metric = choice(found, "metric", ("cosine", "euclidean"), "cosine")
    return {
        "template": choice(found, "template", tuple(TEMPLATES), "arcface"),
        "metric": "euclidean" if metric == "euclidean" else "cosine",
    }


def choice(found: Mapping[str, str], key: str, known: Sequence[str], default: str) -> str:
    value = found.get(key, default)
    if value not in known:
        raise UserError(f"{key}={value} is not one of {', '.join(known)}")
    return value


def pixels(found: Mapping[str, str]) -> int | None:
    value = found.get("px")
    if value is None:
        return None
    if not value.isdecimal() or not 8 <= int(value) <= 1024:
        raise UserError(f"px={value} is not a whole number from 8 to 1024")
    return int(value)


def triple(found: Mapping[str, str], key: str, default: float) -> tuple[float, float, float]:
    """Three numbers, one a channel; a single one stands for all."""
    if key not in found:
        return default, default, default
    try:
        values = [float(part) for part in found[key].split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise UserError(f"{key}={found[key]} is not one number or three, as in {key}=0.485,0.456,0.406")
    first, second, third = values * 3 if len(values) == 1 else values
    return first, second, third
