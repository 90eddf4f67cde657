"""From a model to proved files: export, run in the real runtime, compare, and only then name the file."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from export import sidecar as sidecars
from export.onnx import OPSET, export_onnx
from export.parity import check
from export.runtimes import Artifact
from export.sidecar import Card, Crop, Input, Parity, Sidecar
from export.tflite import export_tflite
from export.tracing import INPUT_NAME, OUTPUT_NAME, at_rest
from faces.align import TEMPLATES
from faces.errors import UserError
from faces.files import sha256


@dataclass(frozen=True)
class _Format:
    write: Callable[[nn.Module, Path, int], None]
    layout: Literal["NCHW", "NHWC"]
    opset: int | None
    tools: tuple[str, ...]


_FORMATS = {
    "onnx": _Format(export_onnx, "NCHW", OPSET, ("onnx", "onnxscript", "onnxruntime")),
    "tflite": _Format(export_tflite, "NHWC", None, ("litert-torch", "ai-edge-litert")),
}
FORMATS = tuple(_FORMATS)


@torch.no_grad()
def reference_embeddings(model: nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """The model's own embeddings (N, D) float32 of uint8 crops (N, p, p, 3), in eval mode on the CPU."""
    with at_rest(model) as resting:
        parts = [
            resting(torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255)
            for start in range(0, len(images), batch)
        ]
    return torch.cat(parts).float().numpy()


def export_model(
    model: nn.Module,
    name: str,
    folder: str | Path,
    formats: Sequence[str],
    images: np.ndarray,
    card: Card,
    *,
    allow_failure: bool = False,
) -> list[dict[str, Any]]:
    """Write `folder/name.<format>` and its sidecar for each format; rows as `artifacts` of results.json.

    images: (N, p, p, 3) uint8 aligned crops at the model's input size that the model was not trained on, 256
    or more. A row's `path` is relative to `folder`. An artifact that misses its tolerance raises UserError
    with the figures and leaves neither file nor sidecar under its name, nor those of an earlier export;
    `allow_failure` keeps it all the same, `passed` false, and the sidecar records both. UserError on an
    unknown format.
    """
    unknown = [format for format in formats if format not in _FORMATS]
    if unknown:
        raise UserError(f"unknown format {unknown[0]!r}. Known: {', '.join(FORMATS)}")
    folder = Path(folder)
    unproved = folder / ".unproved"
    # What a killed run left there was never proved.
    shutil.rmtree(unproved, ignore_errors=True)
    unproved.mkdir(parents=True)
    try:
        reference = reference_embeddings(model, images)
        return [
            _export_one(model, format, folder / f"{name}.{format}", unproved, images, reference, card, allow_failure)
            for format in formats
        ]
    finally:
        shutil.rmtree(unproved)


def _export_one(
    model: nn.Module,
    format: str,
    final: Path,
    unproved: Path,
    images: np.ndarray,
    reference: np.ndarray,
    card: Card,
    allow_failure: bool,
) -> dict[str, Any]:
    for stale in (final, sidecars.path_of(final)):
        stale.unlink(missing_ok=True)
    candidate = unproved / final.name
    px = images.shape[1]
    _FORMATS[format].write(model, candidate, px)
    pending = _contract(candidate, format, px, reference.shape[1], card)
    parity = check(Artifact(candidate, pending), reference, images)
    if not parity.passed and not allow_failure:
        raise UserError(f"{final.name} differs from its model: {parity.reason}; nothing was written")
    sidecar = pending.model_copy(update={"parity": parity, "parity_failure_allowed": allow_failure})
    # The sidecar first: an artifact under its final name always has one.
    sidecars.write(final, sidecar)
    candidate.replace(final)
    return {
        "path": final.name,
        "format": format,
        "precision": sidecar.precision,
        "bytes": sidecar.bytes,
        "sha256": sidecar.sha256,
        "parity": parity.model_dump(include={"max_abs", "cosine_min", "passed", "reason"}),
    }


def _contract(file: Path, format: str, px: int, dim: int, card: Card) -> Sidecar:
    chosen = _FORMATS[format]
    base, points = TEMPLATES[card.template]
    shape = (None, 3, px, px) if chosen.layout == "NCHW" else (None, px, px, 3)
    return Sidecar(
        file=file.name,
        bytes=file.stat().st_size,
        sha256=sha256(file),
        format=format,  # type: ignore[arg-type]
        precision="fp32",
        opset=chosen.opset,
        model=card.model,
        parameters=card.parameters,
        macs=card.macs,
        input=Input(name=INPUT_NAME, shape=shape, layout=chosen.layout),
        crop=Crop(
            template=card.template,
            template_px=base,
            resampling="bilinear to the template, then bicubic with antialias to the input, both in uint8",
            points=tuple((round(x, 4), round(y, 4)) for x, y in (points * px / base).tolist()),
        ),
        output=OUTPUT_NAME,
        embedding_dim=dim,
        metric=card.metric,
        thresholds=card.thresholds,
        parity=Parity(max_abs=None, cosine_min=None, faces=0, passed=None, reason="not yet compared"),
        parity_failure_allowed=False,
        teacher=card.teacher,
        data=card.data,
        versions={tool: metadata.version(tool) for tool in ("bridgeface", "torch", "numpy", *chosen.tools)},
    )
