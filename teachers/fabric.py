"""Lightning Fabric as this trainer uses it: devices, strategy, precision, loggers."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from faces.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}
"""64 is for comparisons: rounding alone parts two float32 runs with small batches and batch norms within steps."""


def check_device(device: str) -> tuple[str, str]:
    """cpu, cuda or cuda:N as (kind, number or nothing); UserError where it is another word or cannot be used here."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UserError(f"unknown device {device!r}: give cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r} cannot be used here: no CUDA device is available; leave it out for the CPU")
    return kind, number


def create_fabric(
    device: str = "cpu",
    devices: int | None = None,
    strategy: str = "auto",
    precision: str = "32",
    folder: Path | None = None,
    backbone: nn.Module | None = None,
) -> "Fabric":
    """A launched Fabric. device: cpu, cuda or cuda:N; devices: processes on this machine (under torchrun: its own
    count); strategy: fsdp shards the blocks of `backbone` (CUDA only); folder: gets CSV and TensorBoard logs.

    UserError where the device, the strategy or the precision cannot be had.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    kind, number = check_device(device)
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}. Known: {', '.join(PRECISIONS)}")
    if strategy == "fsdp" and kind != "cuda":
        raise UserError("fsdp shards over GPUs; on CPUs use --strategy ddp")
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    count = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun else devices or 1
    several = count * int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    chosen: Any = strategy
    if strategy == "fsdp":
        chosen = fsdp_strategy(backbone)
    elif strategy == "auto" and several:
        chosen = "ddp"
    loggers: list[Any] = []
    if folder is not None:
        loggers = [
            CSVLogger(folder, name="csv", flush_logs_every_n_steps=1),
            TensorBoardLogger(folder, name="tensorboard"),
        ]
    fabric = Fabric(
        accelerator=kind,
        devices=[int(number)] if number else count,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")) if under_torchrun else 1,
        strategy=chosen,
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
        loggers=loggers,
    )
    fabric.launch()
    return fabric


def fsdp_strategy(backbone: nn.Module | None) -> Any:
    """FSDP with each repeated block of the backbone as a unit; a checkpoint is one whole file."""
    from lightning_fabric.strategies import FSDPStrategy

    kinds = block_classes(backbone) if backbone is not None else set()
    return FSDPStrategy(auto_wrap_policy=kinds or None, state_dict_type="full")


def is_sharded(fabric: "Fabric") -> bool:
    """Does no process hold the whole network?"""
    from lightning_fabric.strategies import FSDPStrategy

    return isinstance(fabric.strategy, FSDPStrategy)


def block_classes(backbone: nn.Module) -> set[type[nn.Module]]:
    """The classes of what stands in a row in the backbone: members of its Sequentials and ModuleLists that hold
    parameters and children of their own."""
    found: set[type[nn.Module]] = set()
    for module in backbone.modules():
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(module) > 1:
            kinds = [type(child) for child in module if any(True for _ in child.children())]
            found |= {kind for kind in kinds if kinds.count(kind) > 1 and kind is not nn.Sequential}
    return found
