"""The papers' own accuracies, percent, to stand beside what is measured. Nothing in this file was measured here."""

BRIDGE = "bridge distillation, S-16-sc-E, 16 px"
OCTUPLET = "octuplet loss, ArcFace R50"
QGFACE = "QGFace"
PETALFACE = "PETALface, Swin-B"
PAPERS: dict[tuple[str, str], tuple[tuple[str, float], ...]] = {
    ("lfw", "same@16"): ((BRIDGE, 85.88),),
    ("lfw", "cross@8"): ((OCTUPLET, 90.38), ("octuplet loss, FaceTransformer", 94.02)),
    ("lfw", "cross@12"): ((OCTUPLET, 96.88), ("octuplet loss, FaceTransformer", 98.17)),
    ("lfw", "cross@16"): ((OCTUPLET, 98.28), ("octuplet loss, FaceTransformer", 99.08)),
    ("lfw", "cross@32"): ((OCTUPLET, 99.48), ("octuplet loss, FaceTransformer", 99.57)),
    ("xqlfw", "full"): (("octuplet loss, FaceTransformer", 95.12),),
    ("tinyface", "rank-1"): ((QGFACE, 69.85),),
    ("scface d1", "rank-1"): ((QGFACE, 92.31),),
    ("scface d2", "rank-1"): ((QGFACE, 99.54),),
    ("scface d3", "rank-1"): ((QGFACE, 100.0),),
    ("closed-set", "top-5"): ((BRIDGE, 91.84),),
    ("ijbs", "rank-1"): ((PETALFACE + ", surveillance to single", 44.40), (PETALFACE + ", to booking", 51.09)),
    ("ijbs", "rank-5"): ((PETALFACE + ", surveillance to single", 57.84), (PETALFACE + ", to booking", 64.67)),
    ("ijbs", "rank-10"): ((PETALFACE + ", surveillance to single", 63.87), (PETALFACE + ", to booking", 70.30)),
}
"""(test, figure) to (paper's model, percent)."""
REMARKS = (
    "PETALface's tables of its main paper (BRIAR, TinyFace) are not among the texts this was written from: only its "
    "supplement's IJB-S rows stand here.",
    "UCCS in the paper re-fits the softmax on 4,500 images; here a person is the mean of their known "
    "embeddings, nothing is fitted.",
    "A .bin file does not tell whom its photos show: its intervals take each pair for people of their own, and are too "
    "narrow where people recur.",
    "The two protocols of LFW differ: same@p has both faces at p px, cross@p the second one.",
)
