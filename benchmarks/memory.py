"""Activation memory of one face: what the graph needs, and what the process really grew by."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_runtimes import open_runner
from faces.errors import UserError

_BATCHES = (256, 2048)


def activations(onnx_file: Path, px: int) -> dict[str, int]:
    """Bytes of one face's activations in an ONNX file, as float32, the input among them.

    all_bytes: every tensor between two nodes, which is what grows with the input's area as the paper's memory column
    does; arena_bytes: the most that is alive at once when the nodes run in the file's order, which is what a memory
    planner needs at least.
    """
    import onnx
    from onnx import shape_inference

    model = onnx.load(str(onnx_file))
    constants = {one.name for one in model.graph.initializer}
    # Files of IR version 3 list their weights among the inputs.
    inputs = {one.name for one in model.graph.input} - constants
    for given in model.graph.input:
        if given.name in inputs:
            given.type.tensor_type.shape.dim[0].dim_value = 1
    model = shape_inference.infer_shapes(model, data_prop=True)
    shapes = {
        one.name: [d.dim_value for d in one.type.tensor_type.shape.dim]
        for one in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    sizes: dict[str, int] = {}
    last: dict[str, int] = {}
    for step, node in enumerate(model.graph.node):
        for name in (*node.input, *node.output):
            if name and name not in constants and node.op_type != "Constant":
                # A free batch that shape inference could not follow counts as the one face it is.
                sizes[name] = 4 * int(np.prod([max(1, side) for side in shapes.get(name, [])], dtype=np.int64))
                last[name] = step
    alive = inputs
    peak = 0
    for step, node in enumerate(model.graph.node):
        alive |= {name for name in node.output if name in sizes}
        peak = max(peak, sum(sizes[name] for name in alive))
        alive -= {name for name in alive if last[name] <= step}
    return {"all_bytes": sum(sizes.values()), "arena_bytes": peak}


def grown_bytes(file: Path, runtime: str, arithmetic: str | None = None) -> float:
    """Bytes a face by which a process's high-water mark grows from batch 256 to batch 2,048: input, activations and
    output as this runtime really lays them out. Each batch runs in a process of its own."""
    marks = []
    for batch in _BATCHES:
        command = [sys.executable, "-m", "benchmarks.memory", str(file), runtime, str(batch), arithmetic or ""]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{file.name} could not be run for its memory: {done.stderr.strip().splitlines()[-1:]}")
        marks.append(json.loads(done.stdout)["high_water_bytes"])
    return (marks[1] - marks[0]) / (_BATCHES[1] - _BATCHES[0])


def _high_water(file: Path, runtime: str, batch: int, arithmetic: str | None) -> int:
    runner = open_runner(file, runtime, 1, arithmetic)
    fed = runner.sidecar.input
    # The input in its final type from the start: no copy of ours may count.
    faces = np.zeros((batch, *fed.shape[1:]), dtype=fed.dtype)
    # Written to, as untouched zeros take no memory.
    faces.fill(1)
    for _ in range(2):
        runner.run(faces)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise UserError("this system does not tell a process's high-water mark (/proc/self/status)")


def _main(file: str, runtime: str, batch: str, arithmetic: str) -> None:
    found: dict[str, Any] = {"high_water_bytes": _high_water(Path(file), runtime, int(batch), arithmetic or None)}
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
