"""A fine-tuned teacher as one safetensors file.

Methods that train adapters store these alone (under 1% of a large backbone) with the fingerprint of the frozen
weights they belong to; the others store the whole backbone. Where images have an alpha of their own, what gives it
(the quality score, its map and threshold) is in the file too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from faces.errors import UserError
from faces.files import whole
from faces.quality import Alpha
from teachers import lora
from teachers.alpha import alpha_from, alpha_notes, alpha_state
from teachers.methods.base import kind_of
from teachers.settings import Finetune, finetune_settings
from teachers.weights import load_state

if TYPE_CHECKING:
    from teachers.teacher import Teacher

_FORMAT = "bridgeface-teacher-1"
_BACKBONE, _ALPHA, _CENTRE = "backbone.", "alpha.", "centre"


def save_tuned(
    path: str | Path, teacher: "Teacher", how: Finetune, base: str | Path | None, base_seed: int = 0
) -> None:
    """Write what fine-tuning changed. base: what `create_teacher` got as the weights before it (None: the default),
    and base_seed as their seed, where they are random.

    The teacher lies on one process, in evaluation mode, with its adapters attached.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in teacher.backbone.state_dict().items()}
    # A comparison in float64 began with float32 weights, and leaves the frozen ones as they were.
    state = {name: value.float() if value.dtype == torch.float64 else value for name, value in state.items()}
    frozen = {name: value for name, value in state.items() if not lora.is_adapter(name)}
    adapted = len(frozen) < len(state)
    kept = state.keys() - frozen.keys() if adapted else state.keys()
    tensors = {_BACKBONE + name: state[name] for name in state if name in kept}
    notes: dict[str, Any] = {
        "format": _FORMAT,
        "teacher": teacher.name,
        "settings": asdict(how),
        "metric": teacher.metric,
        "base": base if base in (None, "hub", "random") else str(Path(base).resolve()),
        "base_seed": base_seed,
        "base_sha256": digest(frozen) if adapted else None,
        "licence": teacher.licence,
    }
    if teacher.alpha is not None:
        assert isinstance(teacher.alpha, Alpha)
        notes["alpha"], alpha = alpha_notes(teacher.alpha), alpha_state(teacher.alpha)
        tensors |= {_ALPHA + name: value.detach().cpu().contiguous() for name, value in alpha.items()}
    if teacher.centre is not None:
        tensors[_CENTRE] = teacher.centre.detach().cpu().contiguous()
    with whole(path) as temporary:
        # One note only: safetensors writes several in an order of chance.
        save_file(tensors, temporary, {"bridgeface": json.dumps(notes)})


def tuned_notes(path: str | Path) -> dict[str, Any] | None:
    """What `save_tuned` wrote beside the tensors; None where the file is another one."""
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {}).get("bridgeface", "null"))
    except (SafetensorError, OSError, ValueError):
        return None
    return notes if isinstance(notes, dict) and notes.get("format") == _FORMAT else None


def apply_tuned(teacher: "Teacher", path: str | Path) -> "Teacher":
    """Put what a tuned file holds into the teacher it was made from, in place.

    UserError: another teacher, other frozen weights, a damaged file.
    """
    notes = tuned_notes(path)
    if notes is None:
        raise UserError(f"{path} holds no fine-tuned teacher, or it is cut short")
    if notes["teacher"] != teacher.name:
        raise UserError(f"{path} was fine-tuned from {notes['teacher']}, not {teacher.name}")
    how = finetune_settings(**_listed(notes["settings"]))
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {name.removeprefix(_BACKBONE): v for name, v in tensors.items() if name.startswith(_BACKBONE)}
    if notes["base_sha256"] is None:
        load_state(teacher.backbone, state, path)
    else:
        if digest(teacher.backbone.state_dict()) != notes["base_sha256"]:
            raise UserError(
                f"{path} holds adapters of other frozen weights than these; they were made from {notes['base']}"
                if notes["base"]
                else f"{path} holds adapters of the default weights of {teacher.name}, and these are others"
            )
        kind_of(how.method).adapt(teacher.backbone, how)
        _load_adapters(teacher.backbone, state, path)
    if "alpha" in notes:
        alpha = {name.removeprefix(_ALPHA): v for name, v in tensors.items() if name.startswith(_ALPHA)}
        teacher.alpha = alpha_from(notes["alpha"], alpha, path)
    teacher.centre, teacher.metric = tensors.get(_CENTRE), notes["metric"]
    teacher.source = f"{teacher.source}, fine-tuned by {how.method} ({how.steps} steps)"
    return teacher.requires_grad_(False).eval()


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes of the tensors; bfloat16 ones count as the float32 that they are equal to."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        value = state[name].detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
        sha.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _load_adapters(backbone: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    wanted = lora.adapter_state(backbone)
    if {name: value.shape for name, value in wanted.items()} != {name: value.shape for name, value in state.items()}:
        raise UserError(f"{path} holds other adapters than its own settings make; it is damaged")
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise UserError(f"{path} holds values that are not finite")
    backbone.load_state_dict(state, strict=False)


def _listed(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
