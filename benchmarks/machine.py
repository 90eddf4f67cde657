"""The machine that a figure was measured on, and the cores it was measured with."""

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_PACKAGES = ("onnxruntime", "ai-edge-litert", "tflite-runtime", "openvino", "numpy", "torch")


def describe() -> dict[str, Any]:
    """What stands beside a table: CPU, its cores and vector units, memory, load, system, and versions."""
    info = _cpu_info()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "arch": platform.machine(),
        "cores": len(cores()),
        "vector_units": [flag for flag in _FLAGS if flag in flags],
        "hypervisor": "hypervisor" in flags,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_1m": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def sentence(machine: dict[str, Any]) -> str:
    """One line for a table's foot."""
    units = ", ".join(machine["vector_units"]) or "no vector units that matter here"
    virtual = ", virtual" if machine["hypervisor"] else ""
    return (
        f"{machine['cpu']} ({units}{virtual}), {machine['cores']} core(s), load {machine['load_1m']} at the start, "
        f"{machine['system']}"
    )


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def idlest(count: int, seconds: float = 0.3) -> list[int]:
    """The `count` cores with the least work within `seconds`."""
    before = _busy()
    time.sleep(seconds)
    after = _busy()
    work = {core: after.get(core, 0) - before.get(core, 0) for core in cores()}
    # Of equally idle ones the last: interrupts go to the first.
    return sorted(sorted(work, key=lambda core: (work[core], -core))[:count])


@contextlib.contextmanager
def pinned(count: int, pin: bool = True) -> Iterator[list[int]]:
    """Hold this process, and the threads it starts inside, to the `count` idlest cores; yields these.

    pin=False changes nothing and yields all cores.
    """
    before = os.sched_getaffinity(0)
    chosen = idlest(min(count, len(before))) if pin else sorted(before)
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def _busy() -> dict[int, int]:
    """Jiffies that each core worked since the start."""
    found = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _wait, irq, soft, steal = map(int, numbers[:8])
            found[int(name[3:])] = user + nice + system + irq + soft + steal
    return found


def _cpu_info() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
