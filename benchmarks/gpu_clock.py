"""Time on a GPU by CUDA events; on a CPU, where the same code is tested, by the wall clock."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

WINDOWS = 10
_WINDOW_MS = 50.0


def faces_per_second(call: Callable[[], object], batch: int, device: str, stream: Any = None) -> dict[str, float]:
    """Median over ten windows of at least 50 ms, its `iqr`, and the milliseconds of one call; warmed up.

    call: enqueues one batch; on CUDA it must run on `stream` (the current one by default).
    """
    span = _events if device == "cuda" else _wall
    for _ in range(3):
        call()
    took = span(call, 3, stream) / 3
    repeats = max(1, int(np.ceil(_WINDOW_MS / max(took, 1e-3))))
    # Half a window more of warm-up: clocks of a GPU rise with load.
    span(call, max(1, repeats // 2), stream)
    each = [span(call, repeats, stream) / repeats for _ in range(WINDOWS)]
    rates = [batch / one * 1e3 for one in each]
    low, middle, high = np.percentile(rates, [25, 50, 75])
    return {"faces_per_second": float(middle), "iqr": float(high - low), "ms": float(np.median(each))}


def _events(call: Callable[[], object], repeats: int, stream: Any) -> float:
    """Milliseconds on the GPU between two events around `repeats` calls."""
    stream = stream or torch.cuda.current_stream()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record(stream)
    for _ in range(repeats):
        call()
    end.record(stream)
    end.synchronize()
    return float(start.elapsed_time(end))


def _wall(call: Callable[[], object], repeats: int, stream: Any) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) * 1e3


def peak_memory(device: str, work: Callable[[], Any]) -> tuple[Any, int | None]:
    """(what `work` returns, the most bytes that torch held on the GPU meanwhile; None on a CPU)."""
    if device != "cuda":
        return work(), None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    found = work()
    torch.cuda.synchronize()
    return found, int(torch.cuda.max_memory_allocated())


def matrix_peak(device: str) -> dict[str, float]:
    """GFLOP/s of a 4096 x 4096 product (512 on a CPU) in float32, TF32 off, and in float16 and bfloat16."""
    side = 4096 if device == "cuda" else 512
    types = {"fp32": torch.float32, "bf16": torch.bfloat16} | ({"fp16": torch.float16} if device == "cuda" else {})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        found = {}
        for name, dtype in types.items():
            a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
            rate = faces_per_second(lambda a=a, b=b: torch.mm(a, b), 1, device)["faces_per_second"]  # type: ignore[misc]
            found[name] = rate * 2 * side**3 / 1e9
        return found
    finally:
        torch.set_float32_matmul_precision(before)
