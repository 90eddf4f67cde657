"""Where a teacher's weights come from: a file, the hub, an installed pip package. Never a pickle."""

import pickle
import zipfile
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from faces.errors import UserError

# Entries that a checkpoint may hold or leave out: constants that the module computes itself.
_CONSTANTS = ("attn_mask", "relative_position_index", "num_batches_tracked")
_SHOWN = 3


def package_file(distribution: str, name: str) -> Path:
    """The path of a data file of an installed distribution, which is not imported; else UserError."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"these weights come with the package {distribution}, which is not installed: pip install {distribution}"
        ) from None
    for file in files:
        if file.name == name and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise UserError(f"the installed package {distribution} lacks {name}: pip install --force-reinstall {distribution}")


def hub_file(repository: str, name: str) -> Path:
    """Download (or find in the hub's cache) one file; UserError without the package, network or file."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UserError("weights from the hub need a package: pip install 'bridgeface[hub]'") from None
    try:
        return Path(hf_hub_download(repository, name))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot fetch {name} of the hub repository {repository} ({reason}); download it elsewhere "
            "and give the file with --teacher-weights FILE"
        ) from error


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file or a torch file (`weights_only`), on the CPU.

    A torch file may hold the state dict under "state_dict" or "model", and its names may start with
    "module.". Raises UserError where the file cannot be read or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    if path.stat().st_size == 0:
        raise UserError(f"the weights file {path} is empty")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, UnicodeError) as error:
        # torch.load has no error of its own for a cut or foreign file.
        raise _unreadable(path, error) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (names to tensors)")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
    return UserError(f"{path} is neither a safetensors file nor a torch file of tensors, or it is cut short ({reason})")


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Copy a state dict into `model`; UserError with counts and first names where it belongs to another."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith(_CONSTANTS)]
    unexpected = [name for name in state if name not in wanted and not name.endswith(_CONSTANTS)]
    common = [name for name in wanted if name in state and not name.endswith(_CONSTANTS)]
    shaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in common
        if state[name].shape != wanted[name].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shaped}
    if any(faults.values()):
        parts = [
            f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
            for what, names in faults.items()
            if names
        ]
        raise UserError(f"{path} holds the weights of another network: {'; '.join(parts)}")
    for name in common:
        if state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            raise UserError(f"{path}: {name} holds values that are not finite")
    model.load_state_dict({name: state[name] for name in common}, strict=False)
