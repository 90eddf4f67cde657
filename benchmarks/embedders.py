"""What the peers' table compares: our artifacts, teachers of the registry, the dlib package, any ONNX file."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import export
from export.crops import model_crops
from faces.align import crop
from faces.dataset import Faces
from faces.degrade import reduce
from faces.errors import UserError
from teachers.registry import DLIB_PACKAGE, create_single
from teachers.weights import package_file


@dataclass(frozen=True)
class Embedder:
    """crops: faces as this model cuts them at `px` pixels (None = full), uint8 (N, p, p, 3); run: crops to (N, D).
    What cannot be counted is None."""

    name: str
    metric: str
    crops: Callable[[Faces, int | None], np.ndarray]
    run: Callable[[np.ndarray], np.ndarray]
    parameters: int | None
    macs: int | None
    bytes: int
    batch: int = 32
    """Largest batch it is timed with: 1 where it takes no more."""


def name_and_weights(text: str) -> tuple[str, str | None]:
    """`NAME=WEIGHTS` or NAME, whose own options (`onnx:FILE?mean=...`, `timm:NAME?px=112`) have such signs too."""
    name, equals, weights = text.partition("=")
    if not equals or "?" in name or name.startswith("onnx:"):
        return text, None
    return name, weights or None


def of_artifacts(files: Sequence[Path]) -> list[tuple[str, Callable[[], Embedder]]]:
    """Each file's name, its folder's before it where two have the same, and how it is opened."""
    twice = {file.name for file in files if [one.name for one in files].count(file.name) > 1}
    named = [(str(file) if file.name in twice else file.name, file) for file in files]
    return [(name, functools.partial(of_artifact, file, name)) for name, file in named]


def of_artifact(file: Path, name: str | None = None) -> Embedder:
    """An exported file, by its sidecar, in its usual runtime on one thread."""
    artifact = export.load(file, 1)
    contract = artifact.sidecar

    def crops(faces: Faces, px: int | None) -> np.ndarray:
        whole = crop(faces.images, faces.landmarks, contract.crop.template)
        if px is None:
            return model_crops(faces.images, faces.landmarks, contract)
        return reduce(whole, px, contract.input.px)

    label = f"{contract.model} ({name or file.name})"
    return Embedder(label, contract.metric, crops, artifact.embed, contract.parameters, contract.macs, contract.bytes)


def of_teacher(name: str, weights: str | None = None) -> Embedder:
    """A teacher of the registry, or `onnx:FILE?mean=...` in onnxruntime, on one thread of torch."""
    teacher = create_single(name, weights)
    if teacher.bootstrap:
        raise UserError(f"{name} has no weights here, and a bootstrap is no peer: give {name}=FILE")
    onnx_file = Path(name.partition(":")[2].partition("?")[0]) if name.startswith("onnx:") else None
    if onnx_file is not None:
        parameters, macs, size = _of_onnx(onnx_file)
    else:
        parameters = sum(one.numel() for one in teacher.backbone.parameters())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            teacher(torch.zeros(1, 3, teacher.input_px, teacher.input_px))
        macs = counter.get_total_flops() // 2
        size = sum(one.numel() * one.element_size() for one in teacher.backbone.state_dict().values())

    def crops(faces: Faces, px: int | None) -> np.ndarray:
        return reduce(crop(faces.images, faces.landmarks, teacher.template), px, teacher.input_px)

    label = onnx_file.name if onnx_file is not None else f"{name} (torch)"
    return Embedder(label, teacher.metric, crops, lambda images: teacher.embed(images, 32), parameters, macs, size)


def of_dlib() -> Embedder:
    """The dlib package itself, on the same chips of 150 px; its network is `dlib_resnet`'s."""
    try:
        import dlib
    except ImportError as problem:
        raise UserError(f"the dlib package is not here ({problem}): pip install dlib-bin") from None
    file = package_file(*DLIB_PACKAGE)
    network = dlib.face_recognition_model_v1(str(file))
    ours = of_teacher("dlib_resnet")

    def run(images: np.ndarray) -> np.ndarray:
        return np.array([np.array(network.compute_face_descriptor(np.ascontiguousarray(one))) for one in images])

    return Embedder("dlib package", "euclidean", ours.crops, run, ours.parameters, ours.macs, file.stat().st_size)


def _of_onnx(file: Path) -> tuple[int | None, int | None, int]:
    import onnx
    from onnx import TensorProto

    from benchmarks.operators import conv_macs

    graph = onnx.load(str(file)).graph
    floating = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    parameters = sum(int(np.prod(one.dims, dtype=np.int64)) for one in graph.initializer if one.data_type in floating)
    return parameters, sum(conv_macs(file).values()) or None, file.stat().st_size
