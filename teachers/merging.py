"""Twin adapters merged at one alpha, and each image's own alpha (PETALface, Algorithm 1)."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from teachers import lora
from teachers.teacher import Teacher


def is_twin(teacher: object) -> bool:
    """Does an image's own alpha change what this teacher says of it?"""
    return isinstance(teacher, Teacher) and any(isinstance(m, lora._Twin) for m in teacher.backbone.modules())


@torch.inference_mode()
def alphas(teacher: Teacher, crops: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
    """Each image's own alpha (N,) in [0, 1], of crops (N, p, p, 3); .5 where nothing tells the quality."""
    if teacher.alpha is None:
        return np.full(len(crops), lora.DEFAULT_ALPHA, np.float32)
    parts = [teacher.alpha(_tensor(crops[start : start + batch])) for start in range(0, len(crops), batch)]
    return torch.cat(parts).float().cpu().numpy()


def merged(teacher: Teacher, alpha: float) -> Teacher:
    """A copy of the teacher with both branches in its weights at one alpha: no adapter is left, every image is
    treated alike. Agrees with the unmerged teacher at that alpha to rounding."""
    one = copy.deepcopy(teacher).cpu().eval()
    lora.merge(one.backbone, alpha)
    one.alpha = None
    return one


def at_alpha(teacher: Teacher, alpha: float) -> Teacher:
    """A copy of the unmerged teacher without its quality, at one alpha for every image: what `merged` must equal, and
    what `teachers.lora.use_alpha` can then give each image's own."""
    one = copy.deepcopy(teacher).cpu().eval()
    one.alpha = None
    for module in one.backbone.modules():
        if isinstance(module, lora._Twin):
            module.alpha = alpha
    return one


def _tensor(crops: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).float().div_(255)
