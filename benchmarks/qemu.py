"""Instructions per face of LiteRT's aarch64 build under qemu, outputs held to this machine's, and an ESTIMATE of speed.

Instructions are exact and repeatable, time under an emulator is not: none is reported.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import export
from benchmarks.sysroot import CPUS, show_cpu, sysroot
from faces.errors import UserError

NATIVE = Path(__file__).parent / "native"
RUNS = (20, 120)
ASSUMED = {"cortex-a53": (1.8, 0.9), "cortex-a76": (2.4, 2.0)}
"""Clock in GHz and instructions a cycle of the estimates: assumed, not measured."""
_TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2}
STEPS = 1
"""Largest difference of an int8 file, in steps of its output's scale."""


def measure(file: Path, cpu: str, folder: Path, faces: int = 8) -> dict[str, Any]:
    """One row: instructions a face on `cpu`, from two runs each of 20 and 120 calls, and the largest difference of
    its embeddings to those of this machine's runtime. UserError where qemu or the ARM files cannot be had."""
    if cpu not in CPUS:
        raise UserError(f"unknown CPU model {cpu!r}. Known: {', '.join(CPUS)}")
    if file.suffix != ".tflite":
        raise UserError(f"{file}: instructions are counted for TFLite files")
    artifact = export.load(file)
    qemu = shutil.which("qemu-aarch64")
    if qemu is None:
        raise UserError("instructions are counted by qemu-aarch64, which is not here: apt-get install qemu-user")
    root = sysroot(folder)
    plugin = _plugin(folder)
    show_cpu(root, cpu)
    px = artifact.sidecar.input.px
    images = np.random.default_rng(0).integers(0, 256, (faces, px, px, 3), dtype=np.uint8)
    fed = artifact.prepare(images)
    here = np.concatenate([artifact.run(fed[i : i + 1]) for i in range(faces)])
    with tempfile.TemporaryDirectory(prefix="qemu-") as work:
        np.save(Path(work, "in.npy"), fed)
        counts = [[_count(qemu, cpu, root, plugin, file, Path(work), runs) for runs in RUNS] for _ in range(2)]
        there = np.load(Path(work, "out.npy"))
    a_face = [{name: (many[name] - few[name]) / (RUNS[1] - RUNS[0]) for name in many} for few, many in counts]
    both = [one["all"] for one in a_face]
    clock, ipc = ASSUMED[cpu]
    # Of floats the scale is the largest value; an int8 file's outputs lie on a grid, whose step is the least gap.
    apart = float(np.abs(here - there).max())
    return {
        "artifact": file.name,
        "runtime": f"{artifact.runtime} aarch64 under {_version(qemu)}",
        "cpu": cpu,
        "precision": artifact.sidecar.precision,
        "instructions": min(both),
        "by_class": a_face[int(np.argmin(both))],
        "repeat_apart": abs(both[0] - both[1]) / min(both),
        "faces": faces,
        "max_abs_to_this_machine": apart,
        **_agrees(here, there, artifact.sidecar.precision),
        "estimate": {
            "label": "estimate, not a measurement",
            "faces_per_second": clock * 1e9 * ipc / min(both),
            "assumed_ghz": clock,
            "assumed_ipc": ipc,
        },
    }


def _agrees(here: np.ndarray, there: np.ndarray, precision: str) -> dict[str, Any]:
    apart = np.abs(here - there).max()
    if precision == "int8":
        values = np.unique(here)
        # The output is dequantised: neighbouring values are a whole number of steps apart.
        step = float(np.diff(values).min()) if len(values) > 1 else 1.0
        return {"steps_apart": float(round(apart / step, 3)), "agrees": bool(apart <= (STEPS + 0.01) * step)}
    return {"agrees": bool(apart <= _TOLERANCE[precision] * max(1.0, float(np.abs(here).max())))}


def _count(qemu: str, cpu: str, root: Path, plugin: Path, file: Path, work: Path, runs: int) -> dict[str, int]:
    counts = work / "counts.json"
    counts.unlink(missing_ok=True)
    environment = {
        "PYTHONHOME": f"{root}/usr", "PYTHONPATH": f"{root}/site", "PYTHONDONTWRITEBYTECODE": "1",
        # Else the order of Python's sets, and with it the number of instructions, changes from run to run.
        "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1",
        "LD_LIBRARY_PATH": f"{root}/lib/aarch64-linux-gnu:{root}/usr/lib/aarch64-linux-gnu",
    }  # fmt: skip
    words = [qemu, "-cpu", cpu, "-L", str(root), "-plugin", f"{plugin},out={counts}"]
    for name, value in environment.items():
        words += ["-E", f"{name}={value}"]
    words += [f"{root}/usr/bin/python3.11", str(NATIVE / "guest.py"), str(file.resolve()), str(work / "in.npy"),
              str(work / "out.npy"), str(runs)]  # fmt: skip
    # The guest inherits this process's environment: only what it needs, so that it is the same everywhere.
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
    if done.returncode or not counts.is_file():
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"{file.name} does not run on {cpu} under qemu: {said}")
    return json.loads(counts.read_text())


def _plugin(folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("clang-16") or shutil.which("clang")
    if compiler is None:
        raise UserError("the instruction counter has to be compiled, and there is no C compiler: apt-get install gcc")
    plugin = folder.resolve() / "count.so"
    done = subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(plugin), str(NATIVE / "count.c")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"the instruction counter does not compile: {done.stderr.strip().splitlines()[-1:]}")
    return plugin


def _version(qemu: str) -> str:
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return f"qemu {said[2]}"
