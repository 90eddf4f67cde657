"""Backbones: torch modules that map aligned faces to embeddings."""

from torch import nn


class Backbone(nn.Module):
    """RGB in [0, 1], shape (N, 3, input_px, input_px), to un-normalised embeddings (N, embedding_dim)."""

    input_px: int
    embedding_dim: int
