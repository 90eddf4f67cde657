"""The rows of the teachers' tables: what each paper compares, in settings of this project."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One training: a method and what differs from its settings. seeds: how many it is run with; same: measured at
    the same resolution too; precision: of the training (`teachers.fabric.PRECISIONS`)."""

    name: str
    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    teacher: str = "dlib_resnet"
    weights: str | None = None
    seeds: int = 1
    same: bool = False
    precision: str = "32"


@dataclass(frozen=True)
class Table:
    title: str
    about: str
    rows: tuple[Row, ...]
    baseline: str | None = "none"
    """The row that the others are compared with, pair by pair."""


# As published, but for the rate: small batches of one low-resolution copy collapse at a higher one.
OCTUPLET = {"steps": 150, "batch": 48, "lr": 5e-5, "triplet_margin": 0.2, "anchor": 0.0, "copies": 1}
OURS = {"steps": 600, "batch": 16, "lr": 2e-4, "triplet_margin": 0.4, "anchor": 2.0, "copies": 3}
HELD = OURS | {
    "steps": 1450, "copies": 2, "sizes": (7, 14, 7, 28), "average": 0.995,
    "unlabelled": 16, "singles": False, "relational": 1.0,
}  # fmt: skip
_SHORT = OCTUPLET | {"steps": 60}
_TERMS = (
    ("hhh",), ("hll",), ("lhh",), ("lll",), ("hhh", "hll"), ("hhh", "lhh"), ("hhh", "lll"), ("hll", "lhh"),
    ("hhh", "hll", "lhh"), ("hhh", "hll", "lll"), ("hhh", "lhh", "lll"), ("hll", "lhh", "lll"),
    ("hhh", "hll", "lhh", "lll"),
)  # fmt: skip
ADAPT = {"steps": 120, "batch": 64}
_SCRATCH: dict[str, Any] = {
    "steps": 150, "batch": 64, "optimiser": "sgd", "lr": 0.1, "weight_decay": 5e-4, "head_from": "random",
    "train_batch_norm": True, "clip": 5.0,
}  # fmt: skip


def _qgface(name: str, **changes: Any) -> Row:
    return Row(name, "qgface", _SCRATCH | changes, teacher="mobilefacenet", weights="random")


_NONE = Row("none", "none", same=True)
TABLES: dict[str, Table] = {
    "octuplet": Table(
        "Octuplet loss against the teacher as it is and against its first term alone",
        "Knoche et al. 2023, Tables 1, 2 and 4",
        (
            Row("none", "none", same=True),
            Row("octuplet", "octuplet", OCTUPLET, seeds=3),
            Row("hhh", "octuplet", OCTUPLET | {"terms": ("hhh",)}, seeds=3),
            Row("octuplet + anchor", "octuplet", OCTUPLET | {"steps": 380, "lr": 1e-4, "anchor": 2.0}),
            Row("octuplet, anchor, 3 copies (ours)", "octuplet", OURS, seeds=3, same=True),
            Row(
                "ours, three times as long in bfloat16",
                "octuplet",
                OURS | {"steps": 1800, "average": 0.995},
                same=True,
                precision="bf16",
            ),
            Row(
                "ours, unlabelled faces as people of their own",
                "octuplet",
                OURS | {"steps": 800, "lr": 3e-4, "unlabelled": 16, "average": 0.995},
                seeds=3,
                precision="bf16",
            ),
            Row(
                "ours, unlabelled faces and the relational anchor",
                "octuplet",
                OURS | {"steps": 450, "unlabelled": 16, "relational": 1.0, "average": 0.99},
                seeds=3,
            ),
            Row(
                "ours, unlabelled faces held by both anchors, in bfloat16",
                "octuplet",
                HELD,
                seeds=3,
                precision="bf16",
            ),
            Row(
                "ours, held by both anchors and interpolated, in bfloat16",
                "octuplet",
                HELD | {"interpolate": 0.9},
                seeds=3,
                precision="bf16",
            ),
            Row(
                "ours, with unlabelled faces, on a GPU",
                "octuplet",
                OURS | {"steps": 1500, "batch": 48, "unlabelled": 96, "singles": False, "lr": 4e-4, "average": 0.995},
                precision="bf16",
            ),
            Row(
                "ours, with 48 unlabelled faces in batches of 16, on a GPU",
                "octuplet",
                OURS | {"steps": 2500, "unlabelled": 48, "singles": False, "average": 0.995},
                precision="bf16",
            ),
            Row("half", "full", ADAPT | {"low_share": 0.5, "low_px": (7.0, 28.0), "head": "arcface"}),
        ),
    ),
    "terms": Table(
        "The twelve subsets of the four terms, and all of them",
        "Knoche et al. 2023, Table 4, upper part",
        tuple(Row("+".join(terms), "octuplet", _SHORT | {"terms": terms}) for terms in _TERMS),
        "hhh+hll+lhh+lll",
    ),
    "distance": Table(
        "Distance and feature normalisation",
        "Knoche et al. 2023, Table 4, lower part; each margin scaled to its distance",
        tuple(
            Row(
                f"{distance}{', normalised' if normalise else ''}",
                "octuplet",
                _SHORT | {"distance": distance, "normalise": normalise, "triplet_margin": None},
            )
            for distance, normalise in (
                ("euclidean", False),
                ("squared", False),
                ("cosine", False),
                ("euclidean", True),
                ("squared", True),
            )
        ),
        "euclidean",
    ),
    "margin": Table(
        "Margin against batch, equal samples",
        "Knoche et al. 2023, Figure 4",
        tuple(
            Row(
                f"margin {margin}, batch {batch}",
                "octuplet",
                _SHORT | {"triplet_margin": margin, "batch": batch, "steps": 60 * 48 // batch},
            )
            for batch in (24, 48, 96)
            for margin in (0.1, 0.2, 0.4)
        ),
        "margin 0.2, batch 48",
    ),
    "petalface": Table(
        "Full fine-tuning, single LoRA and PETALface; QGFace on the same teacher beside them",
        "Narayan et al. 2024",
        (
            _NONE,
            Row("full", "full", ADAPT, seeds=3),
            Row("lora", "lora", ADAPT, seeds=3),
            Row("petalface", "petalface", ADAPT, seeds=3),
            Row("qgface", "qgface", ADAPT | {"batch": 48}),
        ),
    ),
    "qgface": Table(
        "Augmentation, quality partition and contrastive learning, from scratch",
        "QGFace, Table I",
        (
            _qgface("baseline", augmentation="none", partition=False, both_views=False),
            _qgface("A: adaface augmentation", augmentation="adaface", partition=False, both_views=False),
            _qgface("B: A + partition", augmentation="adaface", both_views=False),
            _qgface("C: B + contrastive", augmentation="adaface"),
            _qgface("D: our augmentation", partition=False, both_views=False),
            _qgface("E: qgface"),
        ),
        "baseline",
    ),
    "queue": Table(
        "The pool of negatives",
        "QGFace, Table II",
        (
            _qgface("no contrastive loss", contrastive="none"),
            _qgface("batch", contrastive="batch"),
            _qgface("momentum", contrastive="momentum"),
            _qgface("E: qgface"),
        ),
        "E: qgface",
    ),
    "threshold": Table(
        "The threshold of the quality partition",
        "QGFace, Table III",
        (
            _qgface("no partition", partition=False),
            _qgface("0.1", gate=0.1),
            _qgface("E: qgface"),
            _qgface("0.3", gate=0.3),
        ),
        "E: qgface",
    ),
}
