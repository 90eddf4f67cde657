"""The Swin transformer of the published PETALface weights (MIT licence).

It is not timm's or torchvision's Swin-B: input 120 px, patches of 6 px, widths 384/768/1536, depths 2/18/2,
heads 8/16/16, windows of 5x5 tokens, an absolute position embedding, and a 512-d projection of all 25 final
tokens; 215.1M parameters with rank-8 adapters.

Every second block rolls its tokens by half a window, as in the Swin paper, but attends across the seam: the
authors' code computes the shifted-window mask and does not use it, so their weights belong to a network
without one, and so is this. Names in the state dict are theirs, adapters aside (`teachers.lora`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teachers.backbones import Backbone
from teachers.lora import OFFICIAL_TARGETS


def _relative_positions(window: int) -> Tensor:
    """(window², window²) indices into a table of (2 window - 1)² offsets."""
    grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


class Attention(nn.Module):
    """Multi-head attention among the tokens of a window, (windows, tokens, dim), with a relative bias."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_positions(window))
        self.relative_position_index: Tensor
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, dim = x.shape
        qkv = self.qkv(x).view(windows, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(1, tokens, tokens, self.heads).permute(0, 3, 1, 2)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(windows, tokens, dim))


class MLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """One transformer block on (N, side², dim) tokens; `shift` tokens are rolled before windows are cut."""

    def __init__(self, dim: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor) -> Tensor:
        images, _, dim = x.shape
        side, window, count = self.side, self.window, self.side // self.window
        y = self.norm1(x).view(images, side, side, dim)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        y = y.view(images, count, window, count, window, dim).transpose(2, 3)
        y = self.attn(y.reshape(images * count * count, window * window, dim))
        y = y.view(images, count, count, window, window, dim).transpose(2, 3)
        y = y.reshape(images, side, side, dim)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + y.reshape(images, side * side, dim)
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    """Halve the side and double the width: each 2x2 group of tokens becomes one."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        images, _, dim = x.shape
        # Columns before rows: the order in which the weights expect the four neighbours.
        x = x.view(images, self.side // 2, 2, self.side // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(images, -1, 4 * dim)))


class Stage(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, side: int, window: int, merge: bool) -> None:
        super().__init__()
        shift = window // 2 if side > window else 0
        self.blocks = nn.Sequential(
            *(Block(dim, heads, side, window, shift if index % 2 else 0) for index in range(depth))
        )
        self.downsample = Merge(dim, side) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class Swin(Backbone):
    """RGB in [0, 1], shape (N, 3, 120, 120), to (N, 512); compare two with the cosine.

    The input is mapped to [-1, 1] inside. `dim` is the first stage's width and doubles at each stage; each
    stage but the last halves the side. With `projection=False` there is no last layer, only `features`.
    Raises ValueError where the windows do not tile a stage.
    """

    lora_targets = OFFICIAL_TARGETS

    def __init__(
        self,
        depths: Sequence[int] = (2, 18, 2),
        dim: int = 384,
        heads: Sequence[int] = (8, 16, 16),
        window: int = 5,
        input_px: int = 120,
        patch: int = 6,
        embedding_dim: int = 512,
        projection: bool = True,
    ) -> None:
        super().__init__()
        side, last = input_px // patch, len(depths) - 1
        if input_px % patch or any((side >> i) % window or side % (1 << i) for i in range(len(depths))):
            raise ValueError(f"windows of {window} do not tile {input_px} px in patches of {patch}")
        self.input_px, self.embedding_dim = input_px, embedding_dim
        self.patch_embed = PatchEmbed(patch, dim)
        self.absolute_pos_embed = nn.Parameter(torch.empty(1, side * side, dim))
        nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.layers = nn.Sequential(
            *(Stage(dim << i, depth, heads[i], side >> i, window, merge=i < last) for i, depth in enumerate(depths))
        )
        self.norm = nn.LayerNorm(dim << last)
        self.features_dim = (side >> last) ** 2 * (dim << last)
        if projection:
            self.feature_layer = nn.Sequential(
                nn.BatchNorm1d(self.features_dim),
                nn.Dropout(0.25),
                nn.Linear(self.features_dim, embedding_dim),
                nn.BatchNorm1d(embedding_dim),
            )

    def features(self, x: Tensor) -> Tensor:
        """The final tokens, flattened: (N, 3, 120, 120) in [0, 1] to (N, 38400), before the projection."""
        x = self.patch_embed(x * 2 - 1) + self.absolute_pos_embed
        return self.norm(self.layers(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.feature_layer(self.features(x))
