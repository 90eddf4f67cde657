"""Time by operator of a TFLite file: LiteRT's Python interpreter has no profiler, so the graph is cut."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_runtimes import open_runner
from benchmarks.timing import random_faces
from faces.errors import UserError

Row = dict[str, Any]
_ROUNDS, _CALLS = 5, 10


def by_operator(file: Path, batch: int, threads: int = 1) -> list[Row]:
    """Rows (operator, kind, microseconds a call, share of the time, multiply-accumulates of one face), slowest first.

    The network is run up to each of its operators; what an operator adds to the prefix before it is its time. The
    prefixes take turns and the best call of each counts, so that a lost core does not pass for an operator.
    An operator that a kernel fuses into the next one, or whose time drowns in the clock's noise, shows 0.

    UserError where LiteRT is not installed.
    """
    Interpreter, schema, flat = _litert()
    runner = open_runner(file, "litert", threads)
    faces = runner.prepare(random_faces(runner, batch))
    steps = _steps(file, schema, flat)
    interpreters = []
    for content, _, _, _ in steps:
        interpreter = Interpreter(model_content=content, num_threads=threads)
        given = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(given, faces.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, faces)
        interpreter.invoke()
        interpreters.append(interpreter)
    ends = np.min([[_best(one) for one in interpreters] for _ in range(_ROUNDS)], axis=0)
    times = np.diff(np.maximum.accumulate(ends), prepend=0.0)
    rows = [
        {"operator": name, "kind": kind, "micros": float(micros), "share": float(micros / ends.max()), "macs": macs}
        for micros, (_, name, kind, macs) in zip(times, steps, strict=True)
    ]
    return sorted(rows, key=lambda one: -one["micros"])


def _litert() -> tuple[Any, Any, Any]:
    """LiteRT's Interpreter, the schema of its files, and what reads and writes these."""
    try:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_litert.tools import flatbuffer_utils as flat
    except ImportError as problem:
        raise UserError(
            f"operators of a TFLite file are timed in LiteRT, which is not installed ({problem}): "
            "pip install ai-edge-litert"
        ) from None
    return Interpreter, schema, flat


def _best(interpreter: Any) -> float:
    seconds = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        interpreter.invoke()
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1e6


def _steps(file: Path, schema: Any, flat: Any) -> list[tuple[bytes, str, str, int | None]]:
    """For each operator: the model that ends with it, its name and kind, its multiply-accumulates of one face."""
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    found = []
    for count in range(1, len(flat.read_model(str(file)).subgraphs[0].operators) + 1):
        # Read anew, as cutting changes the object in place.
        model = flat.read_model(str(file))
        graph = model.subgraphs[0]
        graph.operators = graph.operators[:count]
        last = graph.operators[-1]
        graph.outputs = last.outputs
        # They name outputs that are no longer there.
        model.signatureDefs = []
        code = model.operatorCodes[last.opcodeIndex]
        kind = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        out = graph.tensors[last.outputs[0]].shape
        macs = None
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            area = 1 if kind == "FULLY_CONNECTED" else int(out[1] * out[2])
            macs = area * int(np.prod(graph.tensors[last.inputs[1]].shape))
        shape = "x".join(str(side) for side in out[1:])
        found.append((bytes(flat.convert_object_to_bytearray(model)), f"{count - 1} to {shape}", kind, macs))
    return found
