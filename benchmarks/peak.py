"""What the machine reaches at best, measured in this process: large matrix products in fp32, int8 and bf16."""

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

    512 and 1024 a side, a second each, the best call of both. Measured once per process and thread count, with
    numpy's BLAS held to that many threads. On a busy machine it is too low, and the shares taken of it too high.
    """
    rng = np.random.default_rng(0)
    found = []
    with threadpool_limits(limits=threads, user_api="blas"):
        for side in _SIDES:
            a, b = rng.random((2, side, side), dtype=np.float32)
            out = np.empty_like(a)
            found.append(_gops(side, lambda a=a, b=b, out=out: np.matmul(a, b, out=out)))  # type: ignore[misc]
    return max(found)


@cache
def int8_gops(threads: int) -> float:
    """As `sgemm_gops`, of 8-bit integers with 32-bit sums: onnxruntime's MatMulInteger, unsigned times signed, which
    are the kernels that it multiplies int8 files with (AMX, VNNI or AVX2, whichever the CPU has)."""
    try:
        import onnx
        import onnxruntime
    except ImportError as problem:
        raise UserError(f"the int8 peak needs onnx and onnxruntime ({problem}): pip install onnx onnxruntime") from None
    from onnx import TensorProto, helper, numpy_helper

    rng, found = np.random.default_rng(0), []
    for side in _SIDES:
        weights = rng.integers(-64, 64, (side, side), dtype=np.int8)
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
            "peak",
            [helper.make_tensor_value_info("a", TensorProto.UINT8, [side, side])],
            [helper.make_tensor_value_info("y", TensorProto.INT32, [side, side])],
            [numpy_helper.from_array(weights, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            onnx.ModelProto.SerializeToString(model), options, providers=["CPUExecutionProvider"]
        )
        fed = {"a": rng.integers(0, 128, (side, side), dtype=np.uint8)}
        found.append(_gops(side, lambda session=session, fed=fed: session.run(None, fed)))  # type: ignore[misc]
    return max(found)


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


def _gops(side: int, product: Callable[[], object]) -> float:
    product()
    seconds: list[float] = []
    while sum(seconds) < _SECONDS:
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e9
