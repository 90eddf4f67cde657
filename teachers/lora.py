"""Low-rank adapters (LoRA) as PETALface uses them: two branches mixed by each image's quality.

Narayan et al., "PETALface: Parameter Efficient Transfer Learning for Low-resolution Face Recognition",
2024. Adapters are attached to a backbone in place; the adapted layers keep the names of their own weights,
so a checkpoint of the frozen backbone and one of the adapted backbone differ by the adapters' names only.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
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
_BRANCHES = ("adapter", "low_quality", "high_quality")
DEFAULT_ALPHA = 0.5
OFFICIAL_TARGETS = {"twin": r"attn\.qkv$", "single": r"^feature_layer\.2$"}


class LowRank(nn.Module):
    """x -> scale * dropout(up(down(x))), shaped as the output of `base`; zero until trained, as `up` starts at zero.

    For a linear layer both maps are linear; for a convolution `down` is one of the same kernel, stride and
    padding to `rank` channels and `up` a 1x1. Scale 1 (no division by the rank), down ~ N(0, 1/rank) and dropout
    behind `up` are the paper's settings.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(base, nn.Linear):
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        else:
            window: dict[str, Any] = {
                name: getattr(base, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            self.down = nn.Conv2d(base.in_channels, rank, bias=False, **window)
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        # In the adapter's own precision: a frozen bfloat16 backbone would round its small updates away.
        return self.scale * self.dropout(self.up(self.down(x.to(self.up.weight.dtype))))

    @torch.no_grad()
    def delta(self) -> Tensor:
        """What it adds to the base's weight, in the shape of that weight: scale * U D."""
        down, up = self.down.weight, self.up.weight
        product = up.flatten(1) @ down.flatten(1)
        return self.scale * product.view(up.shape[0], *down.shape[1:])


class _Single(nn.Module):
    """W x + b + scale U D x."""

    adapter: LowRank

    def forward(self, x: Tensor) -> Tensor:
        base = super().forward(x)
        return base + self.adapter(x).to(base.dtype)


class _Twin(nn.Module):
    """W x + b + (1 - alpha) U_low D_low x + alpha U_high D_high x, with alpha in [0, 1] for each image.

    x has N * k rows: k windows of each of N images in a row, or k = 1. `alpha` is a number or a tensor (N,);
    set it for a forward pass by `use_alpha`. Raises ValueError where k is not whole.
    """

    low_quality: LowRank
    high_quality: LowRank
    alpha: float | Tensor

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha
        base = super().forward(x)
        low, high = self.low_quality(x), self.high_quality(x)
        if not isinstance(alpha, Tensor):
            return base + ((1 - alpha) * low + alpha * high).to(base.dtype)
        images = alpha.shape[0]
        if x.shape[0] % images:
            raise ValueError(f"{x.shape[0]} rows do not divide among the alphas of {images} images")
        # (N, k, ...): each image's windows side by side. A batch that is free in an exported graph stays so.
        alpha = alpha.to(low).view(-1, *(1 for _ in low.shape))
        low, high = (branch.unflatten(0, (images, -1)) for branch in (low, high))
        return base + ((1 - alpha) * low + alpha * high).flatten(0, 1).to(base.dtype)


class LoRALinear(_Single, nn.Linear):
    pass


class LoRAConv2d(_Single, nn.Conv2d):
    pass


class TwinLoRALinear(_Twin, nn.Linear):
    pass


class TwinLoRAConv2d(_Twin, nn.Conv2d):
    pass


_KINDS: dict[tuple[type, bool], type] = {
    (nn.Linear, False): LoRALinear,
    (nn.Linear, True): TwinLoRALinear,
    (nn.Conv2d, False): LoRAConv2d,
    (nn.Conv2d, True): TwinLoRAConv2d,
}
_PLAIN = {adapted: plain for (plain, _), adapted in _KINDS.items()}


def adapt(layer: nn.Module, rank: int, *, twin: bool, scale: float = 1.0, dropout: float = 0.1) -> nn.Module:
    """Give a plain nn.Linear or nn.Conv2d its adapters, in place (its class changes, as in
    `torch.nn.utils.parametrize`, so that its own parameters stay where and what they are)."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    for branch in _BRANCHES[1:] if twin else _BRANCHES[:1]:
        low_rank = LowRank(layer, rank, scale, dropout).train(layer.training)
        precision = torch.promote_types(layer.weight.dtype, torch.float32)
        setattr(layer, branch, low_rank.to(layer.weight.device, precision))
    if twin:
        layer.alpha = DEFAULT_ALPHA  # type: ignore[assignment]
    layer.__class__ = _KINDS[type(layer), twin]
    return layer


def targets_for(backbone: nn.Module) -> dict[str, str]:
    """The patterns of the layers that `attach` adapts by default: the backbone's own `lora_targets`, else the
    attention's qkv, else every convolution wider than a pixel in the second half of the network."""
    own = getattr(backbone, "lora_targets", None)
    if own is not None:
        return dict(own)
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear) and "qkv" in name]
    if names:
        return {"twin": r"(^|\.)qkv$", "single": "^$"}
    spatial = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.kernel_size[0] > 1
    ]
    chosen = spatial[len(spatial) // 2 :] or [n for n, m in backbone.named_modules() if isinstance(m, nn.Linear)]
    return {"twin": "^(" + "|".join(map(re.escape, chosen)) + ")$", "single": "^$"}


def attach(
    backbone: nn.Module,
    rank: int,
    twin: str = OFFICIAL_TARGETS["twin"],
    single: str = OFFICIAL_TARGETS["single"],
    *,
    scale: float = 1.0,
    dropout: float = 0.1,
) -> list[str]:
    """Adapt, in place, each linear layer and convolution whose name matches: twin LoRA or a single one; returns
    their names.

    The patterns (`re.search` over `named_modules` names) default to the layers of the published weights; see
    `targets_for`. Raises ValueError where no layer matches or one is adapted already.
    """
    chosen: list[tuple[str, nn.Module, bool]] = []
    for name, module in backbone.named_modules():
        if type(module) in _PLAIN:
            raise ValueError(f"{name} is adapted already")
        if type(module) in (nn.Linear, nn.Conv2d) and (re.search(twin, name) or re.search(single, name)):
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                raise ValueError(f"{name} is a grouped convolution; adapters know full ones only")
            chosen.append((name, module, bool(re.search(twin, name))))
    if not chosen:
        raise ValueError(f"no layer matches {twin!r} or {single!r}")
    for _, module, is_twin in chosen:
        adapt(module, rank, twin=is_twin, scale=scale, dropout=dropout)
    return [name for name, _, _ in chosen]


def merge(backbone: nn.Module, alpha: float = DEFAULT_ALPHA) -> list[str]:
    """Put the adapters into the weights at one alpha, in place, and remove them; returns the merged layers' names.

    W = W0 + (1 - alpha) U_low D_low + alpha U_high D_high: exact for a fixed alpha; with an alpha of each image's
    own no single weight exists.
    """
    merged = []
    for name, layer in list(backbone.named_modules()):
        if type(layer) not in _PLAIN:
            continue
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        parts = {"adapter": 1.0} if isinstance(layer, _Single) else {"low_quality": 1 - alpha, "high_quality": alpha}
        with torch.no_grad():
            delta = sum(share * getattr(layer, branch).delta().double() for branch, share in parts.items())
            layer.weight.copy_((layer.weight.double() + delta).to(layer.weight.dtype))
        for branch in parts:
            delattr(layer, branch)
        layer.__class__ = _PLAIN[type(layer)]
        merged.append(name)
    return merged


def is_adapter(name: str) -> bool:
    """Does this parameter's name belong to an adapter?"""
    return any(part in _BRANCHES for part in name.split("."))


def adapter_state(backbone: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors alone, by their names in the backbone's state dict."""
    return {name: value for name, value in backbone.state_dict().items() if is_adapter(name)}


@contextlib.contextmanager
def use_alpha(backbone: nn.Module, alpha: float | Tensor) -> Iterator[None]:
    """Within this context the backbone's twin layers use `alpha`: a number or a tensor (N,), one an image."""
    layers = [module for module in backbone.modules() if isinstance(module, _Twin)]
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
