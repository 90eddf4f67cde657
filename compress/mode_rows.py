"""What the students' tables compare, as settings of the distillation."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from faces.degrade import Degradation
from students.heads import CLASS_LOSSES


@dataclass(frozen=True)
class Row:
    """changes: of `distill`; teachers: whom the student learns from, of `both` with their features side by side;
    mirror: targets from a face and its mirror image; virtual: how many virtual faces are added; against: the row that
    this one is compared with, where it is not the table's."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    teachers: Literal["first", "second", "both"] = "first"
    mirror: bool = False
    virtual: int = 0
    against: str | None = None


@dataclass(frozen=True)
class Table:
    title: str
    rows: tuple[Row, ...]
    baseline: str
    """The row that the others are compared with, pair by pair; where every row names its own, words for these."""

    def baseline_of(self, row: Row) -> Row | None:
        """The row that one is compared with; None for a baseline."""
        name = row.against or self.baseline
        return None if name == row.name else next(one for one in self.rows if one.name == name)


OWN = {"mode": "dc", "class_weight": 0.0}
"""The teacher's own feature and no label: the embedding minus the set's mean."""
VIRTUAL = 20_000


def _degraded(strength: float) -> dict[str, Any]:
    """Every chance and spread of the degradation times `strength`; flips and the lowest JPEG quality stay."""
    scaled = {k: strength * v for k, v in asdict(Degradation()).items() if k not in ("flip", "jpeg_quality")}
    return OWN | {"degradation": Degradation(**scaled)}


def _of_loss(loss: str) -> tuple[Row, ...]:
    """Table IV's students: dc and sc from one teacher, sc from the other and from both; and c, without one. Labels and
    targets weigh the same, as in eq. 4."""
    how = {"class_loss": loss, "class_weight": 1.0}
    kinds: tuple[tuple[str, str, Literal["first", "second", "both"]], ...] = (
        ("dc", "dc", "first"),
        ("sc", "sc", "first"),
        ("sc, second teacher", "sc", "second"),
        ("sc, two teachers", "sc", "both"),
        ("c", "c", "first"),
    )
    return tuple(
        Row(f"{loss}, {kind}", how | {"mode": mode}, teachers, against=f"softmax, {kind}")
        for kind, mode, teachers in kinds
    )


TABLES = {
    "modes": Table(
        "Modes, losses and teachers (bridge distillation, Figure 4)",
        (
            Row("c", {"mode": "c"}),
            *(
                Row(
                    f"{mode}, {loss}{', two teachers' if both else ''}",
                    {"mode": mode, "loss": loss},
                    "both" if both else "first",
                )
                for both in (False, True)
                for loss in ("relational", "regression")
                for mode in ("s", "dc", "sc")
            ),
        ),
        "sc, relational",
    ),
    "losses": Table(
        "Classification losses (bridge distillation, Table IV, and SphereFace without the plus)",
        tuple(row for loss in CLASS_LOSSES for row in _of_loss(loss)),
        "softmax in the same mode, from the same teachers",
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
            *(Row(f"degradation times {strength}", _degraded(strength)) for strength in (0.5, 1.5)),
            Row("Muon", OWN | {"optimiser": "muon"}),
            Row("weights averaged", OWN | {"average": 0.98}),
            Row("mixed 16 and 32 px", OWN | {"sizes": (16, 32)}),
            Row("mirrored targets", OWN, mirror=True),
            Row("virtual faces", OWN, virtual=VIRTUAL),
            Row("two teachers", OWN, "both"),
        ),
        "own feature alone",
    ),
}
