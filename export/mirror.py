"""A student asked twice: the embedding of a face and that of its mirror image, added."""

import copy

import torch
from torch import Tensor, nn

from students.student import Student


class Mirrored(nn.Module):
    """What `student` says of a face (N, 3, p, p) and of its mirror image, added: (N, D), at twice the work.

    Nothing is flipped at run time, which not every integer runtime can: a second network whose kernels are mirrored
    says of the face what the first one says of its mirror image, as padding and pooling know neither left nor right.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.face, self.mirror = student, copy.deepcopy(student)
        with torch.no_grad():
            for layer in self.mirror.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.weight.copy_(layer.weight.flip(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.face(x) + self.mirror(x)
