"""What the machine reaches at best: a large fp32 matrix product in this process."""

import time
from functools import cache

import numpy as np
from threadpoolctl import threadpool_limits

# Small enough to run between two turns of other processes: the best of many is the core's own.
_SIDE = 1024
_SECONDS = 1.5


@cache
def sgemm_gops(threads: int) -> float:
    """GFLOP/s (multiply and add = 2) of the best 1024 x 1024 float32 product within 1.5 seconds
    on `threads` threads.

    Measured once per process and thread count, with numpy's BLAS held to that many threads. On a busy machine
    it is too low, and the shares taken of it too high.
    """
    rng = np.random.default_rng(0)
    a, b = rng.random((2, _SIDE, _SIDE), dtype=np.float32)
    out = np.empty_like(a)
    seconds: list[float] = []
    with threadpool_limits(limits=threads, user_api="blas"):
        np.matmul(a, b, out=out)
        while sum(seconds) < _SECONDS:
            start = time.perf_counter()
            np.matmul(a, b, out=out)
            seconds.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / min(seconds) / 1e9
