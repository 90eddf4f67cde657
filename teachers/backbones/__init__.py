"""Backbones: torch modules that map aligned faces to embeddings."""

from torch import nn


class Backbone(nn.Module):
    """RGB in [0, 1], shape (N, 3, input_px, input_px), to un-normalised embeddings (N, embedding_dim)."""

    input_px: int
    embedding_dim: int
    lora_targets: dict[str, str] | None = None
    """Patterns `twin` and `single` of the layers that get adapters (`teachers.lora.attach`); None: by its default."""
    trainable = True
    """False: a frozen file that has no gradient, and no multiply-accumulates to count."""

    def count_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
