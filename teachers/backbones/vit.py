"""The Face Transformer: Zhong and Deng, "Face Transformer for Recognition", 2021.

A ViT on 112 px faces, patches of 8 px with stride 8 (P8S8) or of 12 px with stride 8, overlapping, with a border
of 4 px (P12S8); depth 20, width 512, 8 heads, MLP 2048; the embedding is the class token behind a LayerNorm.
As in the authors' code, attention is scaled by width^-1/2 (not by that of a head), qkv has no bias, and their
weights take 0..255: `from_official` renames them and folds the 255 into the patch projection, which is exact
for the border too, as zero stays zero.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teachers.backbones import Backbone

_LAYER = {
    "0.fn.norm": "norm1",
    "0.fn.fn.to_qkv": "attn.qkv",
    "0.fn.fn.to_out.0": "attn.proj",
    "1.fn.norm": "norm2",
    "1.fn.fn.net.0": "mlp.fc1",
    "1.fn.fn.net.3": "mlp.fc2",
}
_STRIDE = 8


class Attention(nn.Module):
    """Multi-head attention among all tokens, (N, tokens, dim)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, dim = x.shape
        qkv = self.qkv(x).view(images, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.dropout(self.proj(x.transpose(1, 2).reshape(images, tokens, dim)))


class MLP(nn.Module):
    def __init__(self, dim: int, wide: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, wide), nn.Linear(wide, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, heads, dropout), MLP(dim, mlp, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FaceTransformer(Backbone):
    """RGB in [0, 1], shape (N, 3, 112, 112), to (N, dim); compare two with the cosine.

    patch: 8 (P8S8) or 12 (P12S8). The input is taken as it is; see the module about the published weights.
    """

    def __init__(
        self,
        patch: int = 8,
        depth: int = 20,
        dim: int = 512,
        heads: int = 8,
        mlp: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if patch not in (8, 12):
            raise ValueError(f"patches are 8 or 12 px, not {patch}")
        self.input_px, self.embedding_dim = 112, dim
        self.lora_targets = {"twin": r"attn\.qkv$", "single": "^$"}
        tokens = (self.input_px // _STRIDE) ** 2
        # P12S8 has a border of 4 px, of which the right and the lower one are not reached.
        self.patch_embed = nn.Conv2d(3, dim, patch, _STRIDE, padding=patch - 8)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens + 1, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(self.dropout(x))[:, 0])


def patch_of(state: Mapping[str, Tensor]) -> int:
    """Side of the patches that a state dict of ours belongs to; 8 where it does not tell."""
    weight = state.get("patch_embed.weight")
    return 12 if weight is not None and weight.dim() == 4 and weight.shape[-1] == 12 else 8


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict in our names, for inputs in [0, 1], without their classifier; ours unchanged."""
    if "patch_to_embedding.weight" not in state:
        return dict(state)
    named = {"pos_embedding": "pos_embed", "cls_token": "cls_token"}
    named |= {f"mlp_head.0.{part}": f"norm.{part}" for part in ("weight", "bias")}
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "patch_to_embedding.weight":
            found["patch_embed.weight"] = _patches(value) * 255
        elif name == "patch_to_embedding.bias":
            found["patch_embed.bias"] = value
        elif not name.startswith("loss."):
            found[named.get(name) or _layer(name)] = value
    return found


def _patches(weight: Tensor) -> Tensor:
    """The projection of flattened patches (dim, values) as a convolution; what fits neither layout unchanged."""
    if weight.dim() == 2 and weight.shape[1] == 3 * 8 * 8:
        return weight.view(-1, 8, 8, 3).permute(0, 3, 1, 2)  # P8S8 flattens (row, column, channel)
    if weight.dim() == 2 and weight.shape[1] == 3 * 12 * 12:
        return weight.view(-1, 3, 12, 12)  # P12S8 unfolds to (channel, row, column)
    return weight


def _layer(name: str) -> str:
    """`transformer.layers.3.0.fn.fn.to_qkv.weight` -> `blocks.3.attn.qkv.weight`; other names unchanged."""
    parts = name.removeprefix("transformer.layers.").split(".", 1)
    if len(parts) == 2 and name.startswith("transformer.layers."):
        layer, _, kind = parts[1].rpartition(".")
        if layer in _LAYER:
            return f"blocks.{parts[0]}.{_LAYER[layer]}.{kind}"
    return name
