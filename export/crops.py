"""What an artifact sees of a face, by the `crop` of its sidecar. Needs no torch, so scores are the same everywhere."""

from functools import lru_cache

import numpy as np

from export.sidecar import Sidecar
from faces import align
from faces.errors import UserError
from faces.sources.record import aligned_landmarks

RESAMPLING = "bilinear to the template, then bicubic with antialias to the input, both in uint8"
"""The one way that is built here; another one would give other scores than those the thresholds were set on."""


def loose(image: np.ndarray, detector: str, aligned: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """The stored crop (128, 128, 3) uint8 and its landmarks (5, 2) of a photo (H, W, 3) uint8, as `open_faces` cuts it.

    None where the detector finds no face; `aligned` takes the photo as an ArcFace crop. UserError on an unknown or
    missing detector.
    """
    landmarks = aligned_landmarks(image) if aligned else align.create_detector(detector)(image)
    return None if landmarks is None else align.loose_crop(image, landmarks)


def check(contract: Sidecar) -> None:
    """UserError where the sidecar asks for a crop that is not built here."""
    crop = contract.crop
    if crop.template not in align.TEMPLATES:
        raise UserError(
            f"{contract.file}: unknown crop template {crop.template!r}. Known: {', '.join(align.TEMPLATES)}"
        )
    if crop.resampling != RESAMPLING:
        raise UserError(f"{contract.file}: its crop is resampled {crop.resampling!r}; only {RESAMPLING!r} is known")


def model_crops(images: np.ndarray, landmarks: np.ndarray, contract: Sidecar) -> np.ndarray:
    """What `Artifact.embed` takes, (N, p, p, 3) uint8, of stored crops (N, 128, 128, 3) uint8 and (N, 5, 2) points."""
    check(contract)
    crops = align.crop(images, landmarks, contract.crop.template, contract.crop.template_px)
    return resize(crops, contract.input.px)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """`faces.degrade.resize` in numpy: (N, S, S, 3) uint8 to (N, size, size, 3) uint8, bicubic with antialias, rounded.

    Torch computes the same in float32, so what lies next to a half may round the other way: by one level, two values
    in 10,000 at most (one in 20,000 where 112 px become 16 or 32).
    """
    side = images.shape[1]
    if side == size:
        return images
    weights = _weights(side, size)
    narrow = np.tensordot(images.astype(np.float64), weights, ((2,), (1,)))  # (N, H, 3, size)
    reduced = np.tensordot(narrow, weights, ((1,), (1,)))  # (N, 3, x, y)
    return np.ascontiguousarray(reduced.round().clip(0, 255).astype(np.uint8).transpose(0, 3, 2, 1))


@lru_cache(maxsize=8)
def _weights(source: int, target: int) -> np.ndarray:
    """(target, source) float64: Keys' cubic with a = -0.5, widened by the scale where the image becomes smaller."""
    scale = source / target
    wide = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    x = np.abs((np.arange(source) + 0.5 - centre[:, None]) / wide)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)
