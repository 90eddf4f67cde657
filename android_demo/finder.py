"""The app's and the page's face finder in Python: what both are held to, and what its alignment costs."""

from functools import lru_cache

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from android_demo.pins import finder_file
from export.quiet import quiet

SIDE = 128
LEAST_SCORE, SAME_FACE = 0.5, 0.3
OFFSETS = np.array([0.027 - 0.019j, -0.027 - 0.019j, -0.086j, -0.419 - 0.14j, 0.419 - 0.14j])
"""The template's points from the finder's (the mouth's middle for both corners), in eye distances along and across the
line of the eyes: medians over 1,199 faces of people that nothing is measured on, made symmetric."""


@lru_cache(maxsize=1)
def _network() -> Interpreter:
    with quiet():
        network = Interpreter(model_path=str(finder_file()), num_threads=1)
        network.allocate_tensors()
    return network


def _centres() -> np.ndarray:
    """(896, 2): 16 x 16 cells of two anchors, then 8 x 8 cells of six."""
    parts = []
    for cells, anchors in ((16, 2), (8, 6)):
        y, x = np.divmod(np.arange(cells * cells), cells)
        parts.append(np.repeat((np.stack([x, y], 1) + 0.5) / cells, anchors, axis=0))
    return np.concatenate(parts)


def find(photo: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """(score, 16 values in pixels of the photo: centre, size, six points) of each face, the surest first."""
    height, width = photo.shape[:2]
    scale = SIDE / max(height, width)
    small = cv2.resize(
        photo, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    left, top = (SIDE - small.shape[1]) // 2, (SIDE - small.shape[0]) // 2
    fed = np.full((1, SIDE, SIDE, 3), -1, dtype=np.float32)
    fed[0, top : top + small.shape[0], left : left + small.shape[1]] = small / np.float32(127.5) - 1
    network = _network()
    network.set_tensor(network.get_input_details()[0]["index"], fed)
    network.invoke()
    values, logits = (network.get_tensor(one["index"])[0].astype(np.float64) for one in network.get_output_details())
    scores = 1 / (1 + np.exp(-logits[:, 0].clip(-80, 80)))
    values = values.copy()
    centres = _centres() * SIDE
    for at in (0, *range(4, 16, 2)):
        values[:, at : at + 2] += centres - (left, top)
    values *= width / small.shape[1]
    order = sorted(np.flatnonzero(scores >= LEAST_SCORE), key=lambda i: -scores[i])
    found = []
    while order:
        same = [i for i in order if i == order[0] or _overlap(values[i], values[order[0]]) > SAME_FACE]
        found.append((float(scores[order[0]]), np.average(values[same], axis=0, weights=scores[same])))
        order = [i for i in order if i not in same]
    return found


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[:2] + a[2:4] / 2, b[:2] + b[2:4] / 2) - np.maximum(a[:2] - a[2:4] / 2, b[:2] - b[2:4] / 2)
    both = np.maximum(sides, 0).prod()
    return float(both / (a[2:4].prod() + b[2:4].prod() - both))


def detect(photo: np.ndarray) -> np.ndarray | None:
    """A `faces.align.Detector`: five points of the largest face; None where there is none."""
    border = 0
    found = find(photo)
    if not found:
        border = max(photo.shape[:2]) // 2
        found = find(cv2.copyMakeBorder(photo, border, border, border, border, cv2.BORDER_REPLICATE))
    if not found:
        return None
    values = max((one for _, one in found), key=lambda one: one[2] * one[3])[4:12] - border
    points = values[::2] + 1j * values[1::2]
    if points[0].real > points[1].real:
        points[[0, 1]] = points[[1, 0]]
    placed = points[[0, 1, 2, 3, 3]] + OFFSETS * (points[1] - points[0])
    return np.stack([placed.real, placed.imag], 1)
