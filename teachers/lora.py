"""Low-rank adapters (LoRA) as PETALface uses them: two branches mixed by each image's quality.

Narayan et al., "PETALface: Parameter Efficient Transfer Learning for Low-resolution Face Recognition",
2024. Adapters are attached to a backbone in place; the adapted layers keep the names of their own weights,
so a checkpoint of the frozen backbone and one of the adapted backbone differ by the adapters' names only.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

# Algorithm 1 of the paper and the official listing disagree about the branch that gets alpha; as in the
# listing, alpha grows with quality and weighs the second branch.
_OFFICIAL_TWIN = {
    "trainable_lora_down": "low_quality.down",
    "trainable_lora_up": "low_quality.up",
    "trainable_lora_down2": "high_quality.down",
    "trainable_lora_up2": "high_quality.up",
}
_OFFICIAL_SINGLE = {"trainable_lora_down": "adapter.down", "trainable_lora_up": "adapter.up"}
DEFAULT_ALPHA = 0.5


class LowRank(nn.Module):
    """x -> dropout(up(down(x))), (..., inputs) to (..., outputs); zero until trained, as `up` starts at zero.

    Scale 1 (no division by the rank), down ~ N(0, 1/rank), dropout behind `up`: the paper's settings.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.up(self.down(x)))


class LoRALinear(nn.Linear):
    """W x + b + U D x, with one adapter."""

    def __init__(self, base: nn.Linear, rank: int, dropout: float = 0.1) -> None:
        _become_linear(self, base)
        self.adapter = LowRank(base.in_features, base.out_features, rank, dropout).to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.adapter(x)


class TwinLoRALinear(nn.Linear):
    """W x + b + (1 - alpha) U_low D_low x + alpha U_high D_high x, with alpha in [0, 1] for each image.

    x is (N * k, ..., inputs): k windows of each of N images in a row, or k = 1. `alpha` is a number or a
    tensor (N,); set it for a forward pass by `use_alpha`. Raises ValueError where k is not whole.
    """

    def __init__(self, base: nn.Linear, rank: int, dropout: float = 0.1) -> None:
        _become_linear(self, base)
        self.low_quality = LowRank(base.in_features, base.out_features, rank, dropout).to(base.weight)
        self.high_quality = LowRank(base.in_features, base.out_features, rank, dropout).to(base.weight)
        self.alpha: float | Tensor = DEFAULT_ALPHA

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha
        if isinstance(alpha, Tensor):
            windows, rest = divmod(x.shape[0], alpha.shape[0])
            if rest:
                raise ValueError(f"{x.shape[0]} rows do not divide among the alphas of {len(alpha)} images")
            alpha = alpha.to(x).repeat_interleave(windows).view(-1, *(1 for _ in x.shape[1:]))
        low, high = self.low_quality(x), self.high_quality(x)
        return super().forward(x) + (1 - alpha) * low + alpha * high


def _become_linear(layer: nn.Linear, base: nn.Linear) -> None:
    """Initialise `layer` as a linear layer that holds the very parameters of `base`."""
    nn.Module.__init__(layer)
    layer.in_features, layer.out_features = base.in_features, base.out_features
    layer.weight, layer.bias = base.weight, base.bias


def attach(backbone: nn.Module, rank: int, twin: str = r"attn\.qkv$", single: str = r"^feature_layer\.2$") -> list[str]:
    """Adapt, in place, each linear layer whose name matches: twin LoRA or a single one; returns their names.

    The patterns (`re.search` over `named_modules` names) default to the layers of the published weights.
    Raises ValueError where no layer matches or one is adapted already.
    """
    chosen: dict[str, type[TwinLoRALinear] | type[LoRALinear]] = {}
    for name, module in backbone.named_modules():
        if isinstance(module, TwinLoRALinear | LoRALinear):
            raise ValueError(f"{name} is adapted already")
        if isinstance(module, nn.Linear):
            if re.search(twin, name):
                chosen[name] = TwinLoRALinear
            elif re.search(single, name):
                chosen[name] = LoRALinear
    if not chosen:
        raise ValueError(f"no linear layer matches {twin!r} or {single!r}")
    for name, kind in chosen.items():
        base = backbone.get_submodule(name)
        assert isinstance(base, nn.Linear)
        backbone.set_submodule(name, kind(base, rank).train(base.training))
    return list(chosen)


@contextlib.contextmanager
def use_alpha(backbone: nn.Module, alpha: float | Tensor) -> Iterator[None]:
    """Within this context the backbone's twin layers use `alpha`: a number or a tensor (N,), one an image."""
    layers = [module for module in backbone.modules() if isinstance(module, TwinLoRALinear)]
    before = [layer.alpha for layer in layers]
    for layer in layers:
        layer.alpha = alpha
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.alpha = old


def official_rank(state: Mapping[str, Tensor]) -> int | None:
    """The rank of the adapters in a published state dict; None where it holds none."""
    for name, value in state.items():
        if name.endswith("trainable_lora_down.weight") and value.dim() == 2:
            return value.shape[0]
    return None


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict with the adapters' official names replaced by those of this module."""
    renamed = {}
    for name, value in state.items():
        layer, _, last = name.rpartition(".trainable_lora_")
        if layer:
            twin = f"{layer}.trainable_lora_down2.weight" in state
            part = "trainable_lora_" + last.removesuffix(".weight")
            known = _OFFICIAL_TWIN if twin else _OFFICIAL_SINGLE
            name = f"{layer}.{known[part]}.weight" if part in known else name
        renamed[name] = value
    return renamed
