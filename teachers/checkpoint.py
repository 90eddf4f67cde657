"""The resumable state of a fine-tuning, which a kill at any moment leaves whole.

FOLDER/checkpoint.json is written last and names the folder of the newest complete state; older ones are then
removed. A state is `model.ckpt`, written by Fabric's strategy (one file, or FSDP's shards), and a file a process for
what DDP does not wrap: class weights, queues, their optimiser.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from faces.distributed import rank, world_size
from faces.errors import UserError
from faces.files import whole, write_json

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_POINTER = "checkpoint.json"


class Checkpoint:
    def __init__(self, folder: Path, key: str, fabric: "Fabric", keep: Callable[[str], bool]) -> None:
        """keep: which of the model's entries change in training; the others are not stored."""
        self.folder, self.key, self.fabric, self.keep = folder, key, fabric, keep

    def exists(self) -> bool:
        return (self.folder / _POINTER).is_file()

    def save(self, shared: dict[str, Any], own: dict[str, Any], notes: dict[str, Any]) -> None:
        """shared: what Fabric set up; own: modules and optimisers of this process; notes: JSON."""
        name = f"step-{notes['step']:08d}"
        state = self.folder / name
        state.mkdir(parents=True, exist_ok=True)
        self.fabric.save(state / "model.ckpt", dict(shared), filter={"model": lambda name, _: self.keep(name)})
        with whole(state / f"rank-{rank()}.pt") as temporary:
            torch.save({part: one.state_dict() for part, one in own.items()}, temporary)
        self.fabric.barrier()
        if rank() == 0:
            for file in state.rglob("*"):
                _sync(file)
            write_json(
                self.folder / _POINTER, {"state": name, "key": self.key, "world_size": world_size(), "notes": notes}
            )
            for old in self.folder.glob("step-*"):
                if old.name != name:
                    shutil.rmtree(old)
        self.fabric.barrier()

    def backbone(self) -> dict[str, torch.Tensor]:
        """The backbone's entries in the newest state, whole."""
        found = json.loads((self.folder / _POINTER).read_text())
        state = torch.load(self.folder / found["state"] / "model.ckpt", map_location="cpu", weights_only=True)["model"]
        return {name.removeprefix("backbone."): value for name, value in state.items()}

    def load(self, shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any] | None:
        """The notes of the newest state, whose tensors are put into `shared` and `own`; None where there is none.

        UserError where it belongs to other settings, faces or another number of processes, or is damaged.
        """
        if not self.exists():
            return None
        pointer = self.folder / _POINTER
        try:
            found = json.loads(pointer.read_text())
            key, processes, state = found["key"], found["world_size"], self.folder / found["state"]
            if key != self.key:
                raise ValueError("its settings, precision, seed, teacher, quality score or faces differ")
            if processes != world_size():
                raise ValueError(f"it was written by {processes} processes, these are {world_size()}")
            self.fabric.load(state / "model.ckpt", dict(shared), strict=False, weights_only=True)
            saved = torch.load(state / f"rank-{rank()}.pt", map_location=self.fabric.device, weights_only=True)
            for part, one in own.items():
                one.load_state_dict(saved[part])
            return found["notes"]
        except (RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as problem:
            reason = "it is damaged" if isinstance(problem, pickle.UnpicklingError) else problem
            raise UserError(
                f"{pointer} is no checkpoint of this fine-tuning ({reason}); delete it or choose another --out"
            ) from None


def _sync(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
