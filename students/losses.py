"""What a student learns from a teacher: the paper's regression, and a relational loss."""

from torch import Tensor
from torch.nn import functional as F


def regression(student: Tensor, target: Tensor) -> Tensor:
    """Squared distance to the target feature, summed over dimensions, mean over the batch.

    student, target: (B, D). Source: bridge distillation, eq. 6.
    """
    return (student - target).square().sum(1).mean()


def relational(student: Tensor, target: Tensor, temperature: float = 10.0) -> Tensor:
    """Each face is told apart from the batch's others as the teacher tells them apart.

    With unit vectors a of the student and y of the teacher, the mean over faces i of the cross-entropy from
    softmax_j(T y_i . y_j) to softmax_j(T a_i . y_j). student, target: (B, D), any norm; T > 0. Its minimum is
    the entropy of the teacher's softmax, reached at a = y. Only the direction of the student's feature counts.
    """
    a, y = F.normalize(student), F.normalize(target)
    return F.cross_entropy(temperature * a @ y.T, (temperature * y @ y.T).softmax(1))


LOSSES = ("relational", "regression")
