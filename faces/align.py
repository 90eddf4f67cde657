"""Landmarks and similarity transforms: from a photo to the loose crop, from the loose crop to a model's crop."""

from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np

from faces.dataset import CROP_PX
from faces.errors import UserError

TEMPLATES: dict[str, tuple[int, np.ndarray]] = {
    # ArcFace's 112 px template (insightface): left eye, right eye, nose tip, mouth corners.
    "arcface": (
        112,
        np.array(
            [
                [38.2946, 51.6963],
                [73.5318, 51.5014],
                [56.0252, 71.7366],
                [41.5493, 92.3655],
                [70.7299, 92.2041],
            ],
            dtype=np.float32,
        ),
    ),
    # Median place of the same five points in the 150 px chips that dlib cuts for its network.
    "dlib": (
        150,
        np.array([[46.7, 44.9], [99.2, 43.8], [74.0, 76.3], [51.0, 100.5], [96.3, 100.0]], dtype=np.float32),
    ),
}
# The stored crop: the ArcFace template enlarged, its centroid at (64.03, 78.24), eye distance 36 px.
STORED_POINTS = (TEMPLATES["arcface"][1] - TEMPLATES["arcface"][1].mean(0)) * (36 / 35.237) + [64.03, 78.24]

# dlib's five-point file gives the base of the nose, .7816 eye distances below the eyes; the tip of the templates
# lies at .5563 (medians over 1,137 faces that have both).
_TIP_OF_BASE = 0.5563 / 0.7816

Detector = Callable[[np.ndarray], np.ndarray | None]
"""RGB uint8 (H, W, 3) -> landmarks (5, 2) float32 of the largest face (NaN where unknown), or None."""


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares similarity (rotation, uniform scale, shift) from (5, 2) points to (5, 2) points: (2, 3).

    Points that are NaN in either are left out; at least two must remain (ValueError). Source: Umeyama 1991,
    restricted to two dimensions, where both parts of the rotation are ratios of sums.
    """
    return _similarities(source[None], target)[0]


def _similarities(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`similarity` of each of (N, 5, 2) to one target (5, 2): (N, 2, 3)."""
    known = (np.isfinite(source) & np.isfinite(target)).all(2, keepdims=True)
    count = known.sum(1)
    if (count < 2).any():
        raise ValueError("a similarity transform needs at least two known points")
    start, goal = (np.where(known, points, 0).astype(np.float64) for points in (source, target))
    centre, middle = start.sum(1) / count, goal.sum(1) / count
    start, goal = (start - centre[:, None]) * known, (goal - middle[:, None]) * known
    size = np.square(start).sum((1, 2))
    # Points that lie on each other say nothing of rotation or scale.
    size[size == 0] = np.inf
    a = (start * goal).sum((1, 2)) / size
    b = (start[..., 0] * goal[..., 1] - start[..., 1] * goal[..., 0]).sum(1) / size
    turn = np.stack([a, -b, b, a], 1).reshape(-1, 2, 2)
    return np.concatenate([turn, (middle - (turn @ centre[..., None])[..., 0])[..., None]], axis=2)


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """`image` (H, W, 3) seen through `matrix` as (size, size, 3), bilinear, border replicated.

    `matrix` (2, 3) maps pixel centres at integers, as landmarks do. A strong reduction is done by area averaging
    first, as bilinear sampling alone would alias.
    """
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:
        height, width = (max(1, round(side * scale * 2)) for side in image.shape[:2])
        ratio = np.array([image.shape[1] / width, image.shape[0] / height])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        # The first pixel's centre lies at (ratio - 1) / 2 of the image: without that, half a pixel is lost.
        shift = matrix[:, :2] @ ((ratio - 1) / 2) + matrix[:, 2]
        matrix = np.concatenate([matrix[:, :2] * ratio, shift[:, None]], axis=1)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def loose_crop(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stored crop of a photo: ((128, 128, 3) uint8, landmarks (5, 2) in it)."""
    matrix = similarity(landmarks, STORED_POINTS)
    moved = landmarks @ matrix[:, :2].T + matrix[:, 2]
    return warp(image, matrix, CROP_PX), moved.astype(np.float32)


def crop(
    images: np.ndarray, landmarks: np.ndarray, template: str, size: int | None = None, margin: float = 0.0
) -> np.ndarray:
    """A model's own aligned crops, (N, size, size, 3) uint8 RGB.

    images: (N, H, W, 3) uint8; landmarks: (N, 5, 2) pixels; template: a key of TEMPLATES; size: side in px,
    the template's own by default; margin: share of the template's side added on each of the four sides. Another
    size shows the same field as the template's own crop resized, so the two lie on each other.
    """
    base, points = TEMPLATES[template]
    size = size or base
    scale = size / (base * (1 + 2 * margin))
    target = (points + 0.5 + base * margin) * scale - 0.5
    crops = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for i, (image, matrix) in enumerate(zip(images, _similarities(landmarks, target), strict=True)):
        crops[i] = warp(image, matrix, size)
    return crops


def template_landmarks(side: int) -> np.ndarray:
    """The ArcFace template's five points in a crop of `side` px: what an already aligned face has."""
    return (TEMPLATES["arcface"][1] + 0.5) * (side / 112) - 0.5


@lru_cache(maxsize=2)
def create_detector(name: str) -> Detector:
    """`dlib` (HOG detector and five-point landmarks from pip packages) or `yunet:FILE` (OpenCV, the user's file)."""
    if name == "dlib":
        return _dlib_detector()
    if name.startswith("yunet:"):
        return _yunet_detector(Path(name.removeprefix("yunet:")))
    raise UserError(f"unknown detector {name!r}. Known: dlib, yunet:FILE")


def landmark_file() -> Path:
    """dlib's five-point landmark file in the installed `face_recognition_models` (which is not imported)."""
    for file in metadata.files("face_recognition_models") or []:
        if file.name == "shape_predictor_5_face_landmarks.dat":
            return Path(str(file.locate()))
    raise UserError("face_recognition_models is installed without its landmark file; reinstall it with pip")


def _dlib_detector(longest: int = 800, border: int = 30) -> Detector:
    try:
        import dlib
    except ImportError:
        raise UserError("the dlib detector needs the package dlib-bin: pip install dlib-bin") from None
    hog, predictor = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(landmark_file()))

    def detect(image: np.ndarray) -> np.ndarray | None:
        scale = min(1.0, longest / max(image.shape[:2]))
        if min(image.shape[:2]) * scale < 1:
            return None  # so thin that no pixel is left, which cv2.resize refuses
        small = image if scale == 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        # Tightly cropped faces, as ORL's, are often found only with a border around them.
        padded = cv2.copyMakeBorder(small, border, border, border, border, cv2.BORDER_REPLICATE)
        boxes = hog(padded, 1)
        if not boxes:
            return None
        parts = predictor(padded, max(boxes, key=lambda box: box.area())).parts()
        points = (np.array([(part.x, part.y) for part in parts], dtype=np.float64) - border) / scale
        left, right = sorted((points[0:2].mean(0), points[2:4].mean(0)), key=lambda eye: eye[0])
        middle = (left + right) / 2
        unknown = np.full(2, np.nan)
        return np.stack([left, right, middle + _TIP_OF_BASE * (points[4] - middle), unknown, unknown])

    return detect


def _yunet_detector(file: Path) -> Detector:
    if not file.is_file():
        raise UserError(f"no YuNet model at {file}; yunet:FILE names its .onnx file")
    try:
        network = cv2.FaceDetectorYN.create(str(file), "", (320, 320), score_threshold=0.6)
        # Another network is read as well, and fails at the first photo.
        network.detect(np.zeros((320, 320, 3), np.uint8))
    except cv2.error as problem:
        raise UserError(f"OpenCV cannot read {file} as a YuNet model: {problem.err}") from None

    def detect(image: np.ndarray) -> np.ndarray | None:
        network.setInputSize((image.shape[1], image.shape[0]))
        _, found = network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if found is None:
            return None
        points = found[(found[:, 2] * found[:, 3]).argmax(), 4:14].reshape(5, 2).astype(np.float64)
        # YuNet's order is right eye, left eye of the person: as seen, the smaller x comes first.
        for first, second in ((0, 1), (3, 4)):
            if points[first, 0] > points[second, 0]:
                points[[first, second]] = points[[second, first]]
        return points

    return detect
