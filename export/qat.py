"""Quantisation-aware fine-tuning: a student whose weights bear the rounding of `quantize` and `tflite`.

Batch norms are folded, as the exporters do, and channels brought to like ranges (Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", 2019). Training then rounds weights (a scale for each output channel)
and activations (a range for each tensor) with straight-through gradients (Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018), to the very steps of the file that will be
written: what is trained for one grid is on another no better than untrained.
"""

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.targets import Rounding
from faces.degrade import Degradation, degrade
from faces.errors import UserError
from students.small import Residual
from students.student import ConvBNReLU, Student

_MOMENTUM = 0.05
_Layer = nn.Conv2d | nn.Linear


def round_weight(weight: Tensor, steps: float = 127) -> Tensor:
    """To `steps` on each side of zero (`Rounding.weights`), one scale for each row (the first dimension)."""
    scale = (weight.detach().abs().flatten(1).amax(1) / steps).clamp_min(1e-12)
    zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -math.ceil(steps), math.floor(steps))


class RoundActivation(nn.Module):
    """To 256 values over a range that holds zero (`symmetric`: 255 around zero): in training a moving average of the
    batches' least and greatest values. Gradients pass inside the range, and are zero outside."""

    low: Tensor
    high: Tensor

    def __init__(self, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x_low, x_high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
            for limit, found in ((self.low, x_low), (self.high, x_high)):
                limit.copy_(torch.where(torch.isinf(limit), found, limit + _MOMENTUM * (found - limit)))
        low, high, steps = self.low, self.high, 255
        if self.symmetric:
            high, steps = torch.maximum(-low, high), 254
            low = -high
        scale = ((high - low) / steps).clamp_min(1e-12)
        zero_point = (-low / scale).round().to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, steps)


class _RoundedConv(nn.Conv2d):
    round_input: RoundActivation
    steps: float

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.round_input(input), round_weight(self.weight, self.steps), self.bias)


class _RoundedLinear(nn.Linear):
    round_input: RoundActivation
    steps: float

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.round_input(input), round_weight(self.weight, self.steps), self.bias)


@torch.no_grad()
def equalise(writers: Sequence[_Layer], readers: Sequence[_Layer]) -> None:
    """Scale, in place, the channels between layers so that the weights on both sides of each have the same peak. The
    function stays, as what lies between (ReLU, pooling, sums) commutes with a positive factor."""
    out = torch.stack([layer.weight.flatten(1).abs().amax(1) for layer in writers]).amax(0)
    into = torch.stack([_by_input(layer).flatten(1).abs().amax(1) for layer in readers]).amax(0)
    # A channel that is dead on either side is left.
    factor = torch.where((out > 0) & (into > 0), (into / out).sqrt(), 1.0)
    for layer in writers:
        layer.weight.mul_(factor.view(-1, *(1 for _ in layer.weight.shape[1:])))
        layer.bias.mul_(factor)  # type: ignore[union-attr]
    for layer in readers:
        weight = _by_input(layer)
        weight.div_(factor.view(-1, *(1 for _ in weight.shape[1:])))


def _by_input(layer: _Layer) -> Tensor:
    """A view of its weight, the channels that it reads first; of one kernel a channel these are those that it gives."""
    return layer.weight if isinstance(layer, nn.Conv2d) and layer.groups > 1 else layer.weight.transpose(0, 1)


def rounded(student: Student, how: Rounding) -> Student:
    """A trainable copy of the student: batch norms folded, channels equalised, all products of rounded operands."""
    copied = copy.deepcopy(student).cpu().eval()
    for block in (module for module in list(copied.modules()) if isinstance(module, ConvBNReLU)):
        block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()  # type: ignore[type-var, arg-type]
        if how.outputs:
            block.append(RoundActivation(how.symmetric))
    for adding in (module for module in list(copied.modules()) if isinstance(module, Residual) and how.outputs):
        # What comes next reads the file's own rounding of the sum, not the sum.
        adding.sum = RoundActivation(how.symmetric)
        adding.register_forward_hook(lambda module, _, output: module.sum(output))
    for chain in copied.chains.split(", "):
        sides = ([copied.get_submodule(name) for name in side.split()] for side in chain.split(" > "))
        equalise(*([one[0] if isinstance(one, ConvBNReLU) else one for one in side] for side in sides))  # type: ignore[arg-type]
    for layer in [module for module in copied.modules() if isinstance(module, _Layer)]:
        layer.round_input = RoundActivation(how.symmetric)
        layer.steps = how.weights  # type: ignore[assignment]
        layer.__class__ = _RoundedConv if isinstance(layer, nn.Conv2d) else _RoundedLinear
    return copied.train()


@torch.no_grad()
def plain(trained: Student) -> Student:
    """What `rounded` made, without the rounding: an ordinary student, whose batch norms only add the folded biases."""
    student, state = type(trained)(trained.input_px), trained.state_dict()
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(state[f"{name}.weight"])
        if isinstance(module, nn.Linear):
            module.bias.copy_(state[f"{name}.bias"])
        if isinstance(module, ConvBNReLU):
            module[1].bias.copy_(state[f"{name}.0.bias"])  # type: ignore[operator]
            module[1].running_var.fill_(1 - module[1].eps)  # type: ignore[operator]
    return student.eval()


def quantisation_aware(
    student: Student, crops: np.ndarray, margin: float, how: Degradation, rounding: Rounding, seed: int = 0, *,
    steps: int = 100, batch: int = 128, lr: float = 1e-4, train: Callable[[Student], object] | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Student:  # fmt: skip
    """A new student, fine-tuned with the rounding in the loop; `student` is left as it was.

    crops: (N, S, S, 3) uint8, the ArcFace template enlarged by `margin` on each side, as in `students.train.Examples`.
    What the student says of each degraded face, the rounded one shall say too: neither label nor teacher is needed.
    `rounding` is that of the file to come.
    `train` replaces that loop: it gets the student to train in place, e.g. by `students.train.train_student`. `tick`
    gets (steps done, all steps). The result is an ordinary student on the CPU in eval mode. UserError where its
    weights are not finite.
    """
    aware, original = rounded(student, rounding), copy.deepcopy(student).cpu().eval().requires_grad_(False)
    if train is not None:
        train(aware)
    faces = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2)
    optimiser, generator = torch.optim.Adam(aware.parameters(), lr=lr), torch.Generator().manual_seed(seed)
    for step in range(steps if train is None else 0):
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
        if tick is not None:
            tick(step + 1, steps)
    result = plain(aware.cpu())
    if not all(value.isfinite().all() for value in result.state_dict().values()):
        raise UserError("quantisation-aware fine-tuning diverged: its weights are not finite; lower its rate")
    return result
