"""Run a function in several processes that talk by gloo."""

import datetime
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

# Imported once in a server that the processes are forked from: a spawned process takes ten seconds to begin.
# torch's optimisers import torch._dynamo when first used.
multiprocessing.set_forkserver_preload(["torch", "torch._dynamo", "teachers.losses.partial_fc"])


def run_on(world: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)`, a function of a module, returns in each of `world` processes, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_process, (world, folder, work, arguments), nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"{number}.pt") for number in range(world)]


def run_as_torchrun(world: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """As `run_on`, but with the environment that torchrun gives its processes and no group yet: `work` makes it."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        start_processes(_elastic, (world, port, folder, work, arguments), nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"{number}.pt") for number in range(world)]


def _elastic(
    number: int, world: int, port: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    names = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
             "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test",
             "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0}  # fmt: skip
    os.environ |= {name: str(value) for name, value in names.items()}
    torch.save(work(*arguments), Path(folder) / f"{number}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def _process(number: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=number,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        torch.save(work(*arguments), Path(folder) / f"{number}.pt")
    finally:
        dist.destroy_process_group()
