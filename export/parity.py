"""The gate: an artifact's embeddings against its model's, on the same faces, through the real runtime."""

import numpy as np

from export.runtimes import Artifact
from export.sidecar import Parity

TOLERANCE = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.98}
"""Least cosine between the artifact's and the model's embedding of any one face, by precision."""

WANTED_FACES = 256
# Batches that a user will run, none of them a divisor of the next: a graph with a batch size baked in fails
# here.
_BATCHES = (1, 3)


def check(artifact: Artifact, reference: np.ndarray, images: np.ndarray) -> Parity:
    """Compare on `images` (N, p, p, 3) uint8, N >= 1; reference: (N, D) float32, the model's own embeddings.

    One face, three faces and the rest go through as batches of their own. Passed = the least cosine reaches
    the tolerance of the artifact's precision; `reason` gives both, and says where fewer than 256 faces were
    at hand. Raises UserError where the runtime cannot run the artifact, ValueError on arrays that do not
    belong together.
    """
    if len(images) != len(reference) or not len(images):
        raise ValueError(f"{len(images)} images for {len(reference)} reference embeddings")
    cuts = np.cumsum(_BATCHES)
    parts = np.split(images, cuts[cuts < len(images)])
    found = np.concatenate([artifact.embed(part) for part in parts])
    if found.shape != reference.shape:
        raise ValueError(f"embeddings of shape {found.shape}, reference {reference.shape}")
    return judge(found, reference, artifact.sidecar.precision)


def judge(found: np.ndarray, reference: np.ndarray, precision: str) -> Parity:
    """The verdict on two (N, D) arrays of embeddings; see `check`."""
    tolerance, faces = TOLERANCE[precision], len(found)
    few = "" if faces >= WANTED_FACES else f"; only {faces} faces, {WANTED_FACES} wanted"
    a, b = found.astype(np.float64), reference.astype(np.float64)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    usable = np.isfinite(a).all(1) & np.isfinite(b).all(1) & (length > 0)
    if not usable.all():
        reason = f"{faces - usable.sum()} of {faces} embeddings are zero or not finite{few}"
        return Parity(max_abs=None, cosine_min=None, faces=faces, passed=False, reason=reason)
    cosine = float(((a * b).sum(1) / length).min())
    passed = cosine >= tolerance
    # Seven digits, as fp32 artifacts differ from their model in the sixth to eighth.
    reason = f"least cosine {cosine:.7f}, {'at least' if passed else 'below'} {tolerance} ({precision}){few}"
    return Parity(max_abs=float(np.abs(a - b).max()), cosine_min=cosine, faces=faces, passed=passed, reason=reason)
