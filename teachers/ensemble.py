"""Several teachers as one: their features side by side (bridge distillation, the teacher E of its tables).

The paper does not say how the features are joined. Here each member's feature is brought to length 1, so that
none outweighs another by its scale, and they are concatenated; the adaptation module then learns from the whole.
Members keep their own templates and input sizes, so an ensemble embeds faces, not crops.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from faces.dataset import Faces
from faces.errors import UserError
from teachers.teacher import Metric, Teacher

# A face counts as done when every member has embedded it.
_CHUNK = 128


def no_bootstrap(name: str) -> UserError:
    return UserError(
        f"{name} has no trained weights, and a bootstrap cannot be part of an ensemble: give its weights in its "
        "place, as in --teacher-weights FILE+FILE"
    )


class Ensemble(nn.Module):
    """What a pipeline needs of a `Teacher`, over two members or more; compare two embeddings with the cosine.

    input_px is None where the members' sizes differ. Raises UserError on a bootstrap member, which would have to
    be fitted by itself first.
    """

    metric: Metric = "cosine"
    bootstrap = False
    trainable = False

    def __init__(self, members: Sequence[Teacher]) -> None:
        super().__init__()
        for member in members:
            if member.bootstrap:
                raise no_bootstrap(member.name)
        self.teachers = nn.ModuleList(members)
        self.name = "+".join(member.name for member in members)
        self.source = " + ".join(member.source for member in members)
        self.licence = " + ".join(f"{member.name}: {member.licence}" for member in members)
        self.embedding_dim = sum(member.embedding_dim for member in members)
        sizes = {member.input_px for member in members}
        self.input_px = sizes.pop() if len(sizes) == 1 else None

    @property
    def members(self) -> tuple[Teacher, ...]:
        return tuple(self.teachers)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return self.members[0].device

    def embed_faces(
        self, faces: Faces, px: int | None = None, batch: int = 64, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """As `Teacher.embed_faces`: (N, D) float32, each member's part of length 1."""
        embeddings = np.empty((len(faces), self.embedding_dim), np.float32)
        for start in range(0, len(faces), _CHUNK):
            chunk = faces.subset(np.arange(start, min(start + _CHUNK, len(faces))))
            at = 0
            for member in self.members:
                part = member.embed_faces(chunk, px, batch)
                part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
                embeddings[start : start + _CHUNK, at : at + member.embedding_dim] = part
                at += member.embedding_dim
            if progress is not None:
                progress(len(chunk))
        return embeddings
