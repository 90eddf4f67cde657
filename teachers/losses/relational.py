"""Each face told apart from others as the teacher told them apart before its fine-tuning."""

import torch
from torch import Tensor


def relational_anchor(
    features: Tensor, held: Tensor, others: Tensor, spread: float, temperature: float = 10.0
) -> Tensor:
    """Mean over faces i of KL(softmax_j(-T |y_i - o_j|^2 / 2s) || softmax_j(-T |a_i - o_j|^2 / 2s)).

    features a (B, D) of the teacher as it learns; held y (B, D) and others o (M, D) of the teacher as it was, of the
    same faces and of a crowd; spread s: mean squared distance of such features from their mean; T > 0. At least 0,
    reached at a = y. It is the student's relational loss (`students.losses`) for features that are compared by their
    distance, length included: of unit features from 0, with s = 1, the logits differ from T a . o by a constant.
    """

    def logits(x: Tensor) -> Tensor:
        return -temperature / 2 / spread * (x.square().sum(1, keepdim=True) - 2 * x @ others.T + others.square().sum(1))

    return torch.nn.functional.kl_div(
        logits(features).log_softmax(1), logits(held).log_softmax(1), reduction="batchmean", log_target=True
    )
