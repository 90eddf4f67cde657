"""Teachers by name."""

import difflib
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from faces.errors import UserError
from teachers import lora
from teachers.backbones import Backbone
from teachers.backbones.bootstrap import Bootstrap, is_bootstrap
from teachers.backbones.dlib_resnet import DlibResNet
from teachers.backbones.swin import Swin
from teachers.weights import hub_file, load_state, package_file, read_state

Metric = Literal["cosine", "euclidean"]
PETALFACE_HUB = ("kartiknarayan/PETALface", "swin_arcface_webface12m/model.pt")
BOOTSTRAP_LICENCE = "random weights fitted to a reference teacher, whose licence holds"
USER_LICENCE = "the user's own weights: their licence was not stated"
DLIB_PACKAGE = ("face_recognition_models", "dlib_face_recognition_resnet_model_v1.dat")


class Teacher(nn.Module):
    """A face-recognition network: aligned RGB faces in [0, 1], (N, 3, input_px, input_px), to (N, D).

    template: which of `faces.align.TEMPLATES` its crops follow; metric: how two embeddings, which are not
    normalised, are compared; source: where the weights came from; bootstrap: they are no trained
    recognition weights but a closed-form stand-in (`teachers.bootstrap`).
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

    @property
    def bootstrap(self) -> bool:
        return isinstance(self.backbone, Bootstrap)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

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
        device = next(self.parameters()).device
        training = self.training
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


@dataclass(frozen=True)
class Spec:
    """What is known about a teacher.

    `build` makes the bare backbone; `load` takes what --teacher-weights said (None: nothing) and returns the
    backbone with weights and their source. packaged: a pip package ships weights; else None gives a bootstrap.
    """

    build: Callable[..., Backbone]
    load: Callable[[str | Path | None], tuple[Backbone, str]]
    template: str
    metric: Metric
    licence: str
    packaged: bool


def _load_dlib(given: str | Path | None) -> tuple[Backbone, str]:
    if given == "hub":
        raise UserError("dlib_resnet's weights come with a pip package, not from the hub: leave the option out")
    path = package_file(*DLIB_PACKAGE) if given is None else Path(given)
    backbone = DlibResNet()
    if path.suffix == ".dat":
        backbone.load_dat(path)
    else:
        load_state(backbone, read_state(path), path)
    source = f"pip package {DLIB_PACKAGE[0]}, {path.name}" if given is None else str(path)
    return backbone.to(memory_format=torch.channels_last), source


def _load_swin(given: str | Path | None) -> tuple[Backbone, str]:
    if given is None:
        return Bootstrap(), "bootstrap, not fitted yet"
    path = hub_file(*PETALFACE_HUB) if given == "hub" else Path(given)
    if is_bootstrap(path):
        return Bootstrap.from_file(path), f"bootstrap, {path}"
    state = read_state(path)
    backbone = Swin()
    rank = lora.official_rank(state)
    if rank is not None:
        lora.attach(backbone, rank)
    load_state(backbone, lora.from_official(state), path)
    source = "hub " + "/".join(PETALFACE_HUB) if given == "hub" else str(path)
    # Without a quality score every image gets the same mix of the two branches.
    return backbone, source if rank is None else f"{source}, LoRA rank {rank} at alpha .5"


TEACHERS = {
    "dlib_resnet": Spec(
        build=DlibResNet,
        load=_load_dlib,
        template="dlib",
        metric="euclidean",
        licence="weights CC0-1.0 (public domain) as published by dlib",
        packaged=True,
    ),
    "swin_b": Spec(
        build=Swin,
        load=_load_swin,
        template="arcface",
        metric="cosine",
        licence="weights MIT as published by PETALface, trained on WebFace (research use)",
        packaged=False,
    ),
}


def list_teachers(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, e.g. `list_teachers("swin*")`."""
    return fnmatch.filter(TEACHERS, pattern)


def known_teacher(name: str) -> Spec:
    """What is known about a teacher; UserError on an unknown name."""
    if name not in TEACHERS:
        near = difflib.get_close_matches(name, TEACHERS, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"unknown teacher {name!r}{hint} Known: {', '.join(TEACHERS)}")
    return TEACHERS[name]


def create_teacher(name: str, weights: str | Path | None = None) -> Teacher:
    """A teacher in evaluation mode.

    weights: a file, "hub", or None for what an installed package ships; a teacher that no package ships
    weights for is then a bootstrap, which `teachers.bootstrap.fit_bootstrap` must fit before use.
    Raises UserError on an unknown name or weights that cannot be had or do not fit.
    """
    spec = known_teacher(name)
    # The initial weights are overwritten: a caller's random numbers must not depend on the teacher.
    with torch.random.fork_rng(devices=[]):
        backbone, source = spec.load(weights)
    licence = spec.licence if weights in (None, "hub") else USER_LICENCE
    if isinstance(backbone, Bootstrap):
        licence = BOOTSTRAP_LICENCE
    return Teacher(
        backbone,
        name=name,
        template=spec.template,
        metric=spec.metric,
        licence=licence,
        source=source,
    ).eval()
