"""`Teacher`: a face-recognition network with what one must know to use it."""

import contextlib
from collections.abc import Callable
from itertools import chain
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from faces.align import crop
from faces.dataset import Faces
from faces.degrade import reduce
from teachers import lora
from teachers.backbones import Backbone
from teachers.backbones.bootstrap import Bootstrap

Metric = Literal["cosine", "euclidean"]
# Crops that are in memory at once: 512 of 150 px are 35 MB.
_CHUNK = 512


class Teacher(nn.Module):
    """A face-recognition network: aligned RGB faces in [0, 1], (N, 3, input_px, input_px), to (N, D).

    template: which of `faces.align.TEMPLATES` its crops follow; metric: how two embeddings, which are not
    normalised, are compared; source: where the weights came from; bootstrap: they are no trained
    recognition weights but a closed-form stand-in (`teachers.bootstrap`); trainable: false for a frozen file;
    alpha: gives twin adapters each image's quality, (N, 3, p, p) to (N,), or None; centre: (D,), taken from every
    embedding, or None; members: itself, as an
    `Ensemble` has several.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        name: str,
        template: str,
        metric: Metric,
        licence: str,
        source: str,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.name = name
        self.template = template
        self.input_px = backbone.input_px
        self.embedding_dim = backbone.embedding_dim
        self.metric = metric
        self.licence = licence
        self.source = source
        self.trainable = backbone.trainable
        self.alpha: nn.Module | None = None
        self.centre: Tensor | None
        self.register_buffer("centre", None)

    @property
    def bootstrap(self) -> bool:
        return isinstance(self.backbone, Bootstrap)

    @property
    def members(self) -> "tuple[Teacher, ...]":
        return (self,)

    @property
    def device(self) -> torch.device:
        """Where the weights lie; a frozen file may have buffers only."""
        held = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if held is None else held.device

    def forward(self, x: Tensor) -> Tensor:
        first = next(self.backbone.parameters(), x)
        x = x.to(torch.promote_types(x.dtype, first.dtype))
        # Without a quality the layers keep the alpha that the caller set (`lora.use_alpha`), or their own.
        quality = contextlib.nullcontext() if self.alpha is None else lora.use_alpha(self.backbone, self.alpha(x))
        with quality:
            features = self.backbone(x)
        return features if self.centre is None else features - self.centre

    def embed(
        self, images: NDArray[np.uint8], batch: int = 64, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Embeddings, in evaluation mode: (N, input_px, input_px, 3) uint8 RGB crops to (N, D) float32.

        `progress` is called with the number of images done since its last call. Raises ValueError on
        images of another dtype or shape, UserError where a bootstrap is not fitted yet.
        """
        side = self.input_px
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            raise ValueError(f"{self.name} embeds uint8 (N, {side}, {side}, 3), not {images.dtype} {images.shape}")
        training, device = self.training, self.device
        self.eval()
        embeddings = np.empty((len(images), self.embedding_dim), np.float32)
        try:
            with torch.inference_mode():
                for start in range(0, len(images), batch):
                    chunk = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(device)
                    # The permuted view is channels-last, which is what the convolutions run fastest on.
                    output = self(chunk.permute(0, 3, 1, 2).float().div_(255))
                    embeddings[start : start + batch] = output.float().cpu().numpy()
                    if progress is not None:
                        progress(len(chunk))
        finally:
            self.train(training)
        return embeddings

    def embed_faces(
        self, faces: Faces, px: int | None = None, batch: int = 64, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Embeddings (N, D) float32 of faces, cut as this teacher wants them and reduced to `px` pixels.

        px=None is full size. The crops are made chunk by chunk, so memory does not grow with N; the rest is as in
        `embed`.
        """
        parts = [np.empty((0, self.embedding_dim), np.float32)]
        for start in range(0, len(faces), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            crops = crop(faces.images[chunk], faces.landmarks[chunk], self.template, self.input_px)
            parts.append(self.embed(reduce(crops, px, self.input_px), batch, progress))
        return np.concatenate(parts)
