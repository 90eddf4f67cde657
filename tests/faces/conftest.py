"""The ORL faces, read once a session, and sets of noise faces."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scorers import Sharpness, tensor

from faces.align import crop, template_landmarks
from faces.cnniqa import CNNIQA, grey
from faces.dataset import CROP_PX, Faces
from faces.quality import Quality, fit_map
from faces.sources import open_faces


@pytest.fixture(scope="session")
def orl() -> Faces:
    return open_faces("orl")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large files that are not in the checkout; tests that need it are skipped without it."""
    folder = Path(os.environ.get("BRIDGEFACE_SHARED", Path(__file__).parents[3] / "shared"))
    if not (folder / "weights").is_dir():
        pytest.skip("needs the folder shared/ (BRIDGEFACE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def noise_faces() -> Callable[..., Faces]:
    """Noise with the given identities (-1 = unlabelled); keys `PREFIX/INDEX`, names `person-ID`."""

    def make(identities: list[int], prefix: str = "noise", seed: int = 0) -> Faces:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (len(identities), 8, 8, 3), dtype=np.uint8)
        return Faces(
            images=coarse.repeat(CROP_PX // 8, axis=1).repeat(CROP_PX // 8, axis=2),
            landmarks=np.repeat(template_landmarks(CROP_PX)[None], len(identities), 0).astype(np.float32),
            identities=np.array(identities, dtype=np.int64),
            names=tuple(f"person-{i}" for i in range(max(identities, default=-1) + 1)),
            keys=tuple(f"{prefix}/{i}" for i in range(len(identities))),
            source=prefix,
        )

    return make


@pytest.fixture(scope="module")
def crops(orl):
    return crop(orl.images[::4], orl.landmarks[::4], "arcface")


@pytest.fixture(scope="module")
def greys(crops):
    return grey(tensor(crops))


@pytest.fixture
def sharpness(crops):
    quality = Quality(Sharpness(), "sharpness", lower_better=False)
    fit_map(quality, crops, 0)
    return quality


@pytest.fixture
def network():
    torch.manual_seed(3)
    return CNNIQA(stride=13, constant=0.05).eval()
