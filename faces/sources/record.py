"""What a reader yields for each face."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Record:
    """One face of a source, not yet checked.

    key: unique within the source; data: the encoded image file; identity: name, or None = unlabelled;
    landmarks: (5, 2) in pixels of the image, or None = to be detected.
    """

    key: str
    data: bytes
    identity: str | None
    landmarks: np.ndarray | None = None


def decode(data: bytes) -> np.ndarray | None:
    """RGB uint8 (H, W, 3) of an encoded image, EXIF rotation applied; None where it is no readable image."""
    if not data:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
