"""What the students' tables compare, as settings of the distillation."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """changes: of `distill`; both: distilled from the teacher and a second one, their features side by side."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    both: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    rows: tuple[Row, ...]
    baseline: str
    """The row that the others are compared with, pair by pair."""


_MODES = {"c": "labels alone", "s": "adapted target", "dc": "labels, own feature", "sc": "labels, adapted target"}
OWN = {"mode": "dc", "class_weight": 0.0}
"""The teacher's own feature and no label: the embedding minus the set's mean."""

TABLES = {
    "modes": Table(
        "Modes, losses and teachers (bridge distillation, Figure 4)",
        (
            Row("c", {"mode": "c"}),
            *(
                Row(f"{mode}, {loss}{', two teachers' if both else ''}", {"mode": mode, "loss": loss}, both)
                for both in (False, True)
                for loss in ("relational", "regression")
                for mode in ("s", "dc", "sc")
            ),
        ),
        "sc, relational",
    ),
    "recipe": Table(
        "One change at a time",
        (
            Row("own feature alone", OWN),
            Row("sc", {"mode": "sc"}),
            Row("s", {"mode": "s"}),
            Row("class weight .1", {"mode": "dc", "class_weight": 0.1}),
            *(Row(f"batch {batch}", OWN | {"batch": batch}) for batch in (128, 512, 1024)),
            *(Row(f"learning rate {lr}", OWN | {"lr": lr}) for lr in (1.5e-3, 6e-3)),
            *(Row(f"temperature {t}", OWN | {"temperature": float(t)}) for t in (6, 8, 14)),
            Row("weights averaged", OWN | {"average": 0.999}),
            Row("mixed 16 and 32 px", OWN | {"sizes": (16, 32)}),
            Row("two teachers", OWN, both=True),
        ),
        "own feature alone",
    ),
}
