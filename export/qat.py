"""Quantisation-aware fine-tuning: a student whose weights bear the rounding of `quantize` and `tflite`.

Batch norms are folded, as the exporters do, and the channels between two layers brought to like ranges (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", 2019). Each forward pass of the training then
rounds weights (symmetric, one scale an output channel) and activations (affine, one range a tensor) as the int8 files
will, and passes gradients straight through (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018).
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from faces.degrade import Degradation, degrade
from faces.errors import UserError
from students.tiny import ConvBNReLU, Tiny

# The coarsest grids of the three int8 files, so that one training serves all: the CPU file keeps 7 bits of a weight,
# and the symmetric one of TensorRT has half of its grid on values behind a ReLU.
WEIGHT_LEVELS = 63
ACTIVATION_LEVELS = 127
_MOMENTUM = 0.05
# A layer, and the one that alone reads its channels; the narrow ones before a sum are bound to each other.
_CHAINS = (
    *(("stem", "narrow1"), ("wide1", "narrow2"), ("wide2", "narrow3"), ("wide3", "narrow4"), ("wide4", "top")),
    *(("top", "fc1"), ("fc1", "fc2"), ("fc2", "mimic")),
)


def round_weight(weight: Tensor, levels: int = WEIGHT_LEVELS) -> Tensor:
    """Symmetric, to `levels` steps on each side of zero, one scale for each row (the first dimension)."""
    peak = weight.detach().abs().flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny * levels)
    zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, peak / levels, zeros, 0, -levels, levels)


class RoundActivation(nn.Module):
    """Affine, to `levels` steps over a range that holds zero: a moving average of the batches' least and greatest
    values, which training updates. Gradients pass inside the range, and are zero outside."""

    low: Tensor
    high: Tensor

    def __init__(self, levels: int = ACTIVATION_LEVELS) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for range_, found in ((self.low, x.amin().clamp(max=0)), (self.high, x.amax().clamp(min=0))):
                    range_.copy_(torch.where(torch.isinf(range_), found, range_ + _MOMENTUM * (found - range_)))
        scale = ((self.high - self.low) / self.levels).clamp_min(1e-12)
        zero_point = (-self.low / scale).round().clamp(0, self.levels).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, self.levels)


class _RoundedConv(nn.Conv2d):
    round_input: RoundActivation

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.round_input(input), round_weight(self.weight), self.bias)


class _RoundedLinear(nn.Linear):
    round_input: RoundActivation

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.round_input(input), round_weight(self.weight), self.bias)


def _layer(student: Tiny, name: str) -> nn.Conv2d | nn.Linear:
    found = student.get_submodule(name)
    return found[0] if isinstance(found, ConvBNReLU) else found  # type: ignore[return-value]


@torch.no_grad()
def equalise(first: nn.Conv2d | nn.Linear, second: nn.Conv2d | nn.Linear) -> None:
    """Scale the channels between two layers so that the weights on both sides of each have the same peak.

    In place; the function stays, as what lies between (ReLU, pooling) commutes with a positive factor.
    """
    assert first.bias is not None
    out, into = first.weight.flatten(1).abs().amax(1), second.weight.transpose(0, 1).flatten(1).abs().amax(1)
    # A channel that is dead on either side is left.
    factor = torch.where((out > 0) & (into > 0), (into / out).sqrt(), 1.0)
    first.weight.mul_(factor.view(-1, *(1 for _ in first.weight.shape[1:])))
    first.bias.mul_(factor)
    second.weight.div_(factor.view(1, -1, *(1 for _ in second.weight.shape[2:])))


def rounded(student: Tiny) -> Tiny:
    """A trainable copy of the student: batch norms folded, channels equalised, all products of rounded operands."""
    copied = copy.deepcopy(student).cpu().eval()
    for block in [module for module in copied.modules() if isinstance(module, ConvBNReLU)]:
        block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
        # The sum behind a block reads its output too.
        block.append(RoundActivation())
    for one, other in _CHAINS:
        equalise(_layer(copied, one), _layer(copied, other))
    for layer in list(copied.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.round_input = RoundActivation()
            layer.__class__ = _RoundedConv if isinstance(layer, nn.Conv2d) else _RoundedLinear
    return copied.train()


@torch.no_grad()
def plain(trained: Tiny) -> Tiny:
    """The student that `rounded` made, with its present weights and without the rounding: its layers and names are
    those of a new student, and its batch norms only add the folded biases."""
    student = Tiny(trained.input_px)
    for name, module in student.named_modules():
        source = trained.get_submodule(name)
        if isinstance(module, ConvBNReLU):
            conv, norm = module[0], module[1]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            conv.weight.copy_(source[0].weight)
            norm.bias.copy_(source[0].bias)
            norm.running_var.fill_(1 - norm.eps)  # type: ignore[union-attr]
        elif isinstance(module, nn.Linear):
            module.load_state_dict({"weight": source.weight, "bias": source.bias})
    return student.eval()


def quantisation_aware(
    student: Tiny,
    crops: np.ndarray,
    margin: float,
    how: Degradation,
    seed: int,
    *,
    train: Callable[[Tiny], object] | None = None,
    steps: int = 300,
    batch: int = 128,
    lr: float = 3e-4,
) -> Tiny:
    """A new student, fine-tuned with the rounding in the loop; `student` is left as it was.

    crops: (N, S, S, 3) uint8, the ArcFace template enlarged by `margin` on each side, as in `students.train.Examples`.
    What the student says of each degraded face, the rounded one shall say too: no label and no teacher is needed, and
    the result stays the student that was measured. `train` replaces that loop: it gets the student to train in place,
    e.g. by `students.train.train_student`. The result is an ordinary student on the CPU in eval mode. UserError where
    its weights are not finite.
    """
    aware = rounded(student)
    if train is None:
        _imitate(aware, student, crops, margin, how, seed, steps, batch, lr)
    else:
        train(aware)
    result = plain(aware.cpu())
    if not all(value.isfinite().all() for value in result.state_dict().values()):
        raise UserError("quantisation-aware fine-tuning diverged: its weights are not finite; lower its rate")
    return result


def _imitate(
    aware: Tiny, student: Tiny, crops: np.ndarray, margin: float, how: Degradation, seed: int, steps: int, batch: int,
    lr: float,
) -> None:  # fmt: skip
    original = copy.deepcopy(student).cpu().eval().requires_grad_(False)
    faces = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2)
    optimiser = torch.optim.Adam(aware.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = torch.randint(len(faces), (batch,), generator=generator)
        images = degrade(faces[chosen], student.input_px, margin, how, generator)
        wanted, found = original(images), aware(images)
        # Directions, which are compared, and lengths, which the output's range hangs on.
        distance = (found - wanted).square().sum(1).mean() / wanted.square().sum(1).mean()
        loss = (1 - F.cosine_similarity(found, wanted)).mean() + distance
        optimiser.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
