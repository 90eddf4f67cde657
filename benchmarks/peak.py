"""What the machine reaches at best, measured in this process: large matrix products in fp32, int8 and bf16."""

import importlib.util
import time
from collections.abc import Callable
from functools import cache

import numpy as np
from threadpoolctl import threadpool_limits

from faces.errors import UserError

# The small one runs between two turns of other processes, the large one feeds wide matrix units: the best call of
# both is the core's own.
_SIDES = (512, 1024)
_SECONDS = 1.0


@cache
def sgemm_gops(threads: int) -> float:
    """GFLOP/s (multiply and add = 2) of the best float32 product of two square matrices on `threads` threads.

    512 and 1024 a side, a second each, by numpy's BLAS held to that many threads and by onnxruntime where it is
    installed; the best call of all. Measured once per process and thread count. On a busy machine it is too low, and
    the shares taken of it too high.
    """
    rng = np.random.default_rng(0)
    found = []
    with threadpool_limits(limits=threads, user_api="blas"):
        for side in _SIDES:
            a, b = rng.random((2, side, side), dtype=np.float32)
            out = np.empty_like(a)
            found.append(_gops(side, lambda a=a, b=b, out=out: np.matmul(a, b, out=out)))  # type: ignore[misc]
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
        for side in _SIDES:
            a, b = rng.random((2, side, side), dtype=np.float32)
            found.append(_onnxruntime_gops(a, b, threads))
    return max(found)


@cache
def int8_gops(threads: int) -> float:
    """As `sgemm_gops`, of 8-bit integers with 32-bit sums: onnxruntime's MatMulInteger, unsigned times signed, which
    are the kernels that it multiplies int8 files with (AMX, VNNI or AVX2, whichever the CPU has)."""
    if not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")):
        raise UserError("the int8 peak needs onnx and onnxruntime: pip install onnx onnxruntime")
    rng = np.random.default_rng(0)
    return max(
        _onnxruntime_gops(
            rng.integers(0, 128, (side, side), dtype=np.uint8),
            rng.integers(-64, 64, (side, side), dtype=np.int8),
            threads,
        )
        for side in _SIDES
    )


@cache
def bf16_gops(threads: int) -> float:
    """As `sgemm_gops`, of bfloat16 by torch (oneDNN), which uses AMX or AVX-512 BF16 where the CPU has them."""
    import torch

    before, found = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for side in _SIDES:
            a, b = torch.rand(2, side, side).bfloat16()
            found.append(_gops(side, lambda a=a, b=b: torch.mm(a, b)))  # type: ignore[misc]
    finally:
        torch.set_num_threads(before)
    return max(found)


PEAKS: dict[str, Callable[[int], float]] = {"int8": int8_gops, "bf16": bf16_gops}


def peaks(threads: int, precisions: set[str]) -> dict[str, float]:
    """GOP/s by arithmetic: always `fp32`, and `int8` and `bf16` where they are among `precisions`."""
    return {"fp32": sgemm_gops(threads)} | {name: PEAKS[name](threads) for name in PEAKS if name in precisions}


def _onnxruntime_gops(a: np.ndarray, b: np.ndarray, threads: int) -> float:
    """Of a times the constant b, with onnxruntime's kernels: MatMul of float32, MatMulInteger of uint8 and int8."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    kind, given, found = (
        ("MatMul", TensorProto.FLOAT, TensorProto.FLOAT)
        if a.dtype == np.float32
        else ("MatMulInteger", TensorProto.UINT8, TensorProto.INT32)
    )
    graph = helper.make_graph(
        [helper.make_node(kind, ["a", "b"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("a", given, a.shape)],
        [helper.make_tensor_value_info("y", found, a.shape)],
        [numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _gops(len(a), lambda: session.run(None, {"a": a}))


def _gops(side: int, product: Callable[[], object]) -> float:
    product()
    seconds: list[float] = []
    while sum(seconds) < _SECONDS:
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e9
