"""The clock: faces per second and latency of one artifact at one batch size."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cpu_runtimes import Runner
from benchmarks.peak import PEAKS, sgemm_gops

MIN_CALLS = 100
"""Calls wanted before a 99th percentile is read from them."""


def measure(
    artifact: Runner,
    batch: int,
    *,
    windows: int = 10,
    window_seconds: float = 0.05,
    most_seconds: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """One row of `throughput` in results.json: `artifact` at its own thread count, in a hot loop.

    Calls follow each other without pause (a paused core is slower); each window lasts `window_seconds` or one
    call, whichever is longer. At least `windows` windows are run, and more until 100 calls or `most_seconds`
    are reached, as a 99th percentile of fewer calls is only their maximum. Faces are drawn at random, as the
    work does not depend on them; making floats of bytes is outside of the timing (`preprocessing` false).
    faces_per_second: median over windows, `iqr` the distance of its quartiles; p50_ms, p99_ms: of single
    calls; peak_gops: GOP/s of a large matrix product of the row's arithmetic on as many threads (see
    `arithmetic_of`); share: faces/s * 2 * macs of that peak.
    """
    faces = artifact.prepare(random_faces(artifact, batch))
    row, _ = timed_row(
        artifact, lambda: artifact.run(faces), batch, False, windows, window_seconds, most_seconds, clock
    )
    return row


def timed_row(
    artifact: Runner,
    call: Callable[[], object],
    batch: int,
    preprocessing: bool | str,
    windows: int,
    window_seconds: float,
    most_seconds: float,
    clock: Callable[[], float],
) -> tuple[dict[str, Any], float | None]:
    """`measure`'s row of any call on `batch` faces, and the faces of each second that this process really had a core:
    the figure of a core without other work, but for what caches and memory lose. None on several threads, as seconds
    of computing do not tell how well they share the work."""
    peak = peak_of(arithmetic_of(artifact), artifact.threads)
    rates, calls, computed = run_windows(call, batch, windows, window_seconds, most_seconds, clock)
    return {
        "artifact": artifact.path.name,
        "runtime": artifact.runtime,
        "device": "cpu",
        "threads": artifact.threads,
        "batch": batch,
        "precision": precision_of(artifact),
        "input_px": artifact.sidecar.input.px,
        "preprocessing": preprocessing,
        **summary(rates, calls, artifact.sidecar.macs, peak),
    }, batch * len(calls) / computed if artifact.threads == 1 else None


def random_faces(artifact: Runner, count: int) -> np.ndarray:
    px = artifact.sidecar.input.px
    return np.random.default_rng(0).integers(0, 256, (count, px, px, 3), dtype=np.uint8)


def precision_of(artifact: Runner) -> str:
    """The file's, or what the runtime was told to compute in instead."""
    return getattr(artifact, "arithmetic", None) or artifact.sidecar.precision


def arithmetic_of(artifact: Runner) -> str:
    """Whose peak a row is held against: int8 and bf16 their own, all others fp32, as CPUs without half-precision
    arithmetic run an fp16 file in fp32."""
    precision = precision_of(artifact)
    return precision if precision in PEAKS else "fp32"


def peak_of(arithmetic: str, threads: int) -> float:
    return sgemm_gops(threads) if arithmetic == "fp32" else PEAKS[arithmetic](threads)


def run_windows(
    call: Callable[[], object],
    batch: int,
    windows: int,
    window_seconds: float,
    most_seconds: float,
    clock: Callable[[], float],
) -> tuple[list[float], list[float], float]:
    """(faces/s of each window, seconds of each call, seconds that this process computed meanwhile), warmed up."""
    _warm_up(call, window_seconds, clock)
    rates: list[float] = []
    calls: list[float] = []
    began, computed = clock(), time.process_time()
    while len(rates) < windows or (len(calls) < MIN_CALLS and clock() - began < most_seconds):
        seconds = _window(call, window_seconds, clock)
        rates.append(batch * len(seconds) / sum(seconds))
        calls += seconds
    return rates, calls, max(time.process_time() - computed, 1e-9)


def summary(rates: list[float], calls: list[float], macs: int | None, peak_gops: float) -> dict[str, float | None]:
    """The figures of a row. rates: faces/s of each window; calls: seconds of each call; macs: of one face, None where
    they cannot be counted."""
    low, middle, high = np.percentile(rates, [25, 50, 75])
    p50, p99 = np.percentile(calls, [50, 99]) * 1e3
    return {
        "faces_per_second": float(middle),
        "iqr": float(high - low),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "peak_gops": peak_gops,
        "share": None if macs is None else float(middle) * macs * 2 / (peak_gops * 1e9),
    }


def _warm_up(call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> None:
    # The first calls allocate memory and raise the core's clock.
    end = clock() + 2 * seconds
    for _ in range(3):
        call()
    while clock() < end:
        call()


def _window(call: Callable[[], object], least_seconds: float, clock: Callable[[], float]) -> list[float]:
    """Seconds of each call, back to back, until they sum up to `least_seconds`."""
    seconds: list[float] = []
    total, before = 0.0, clock()
    while total < least_seconds:
        call()
        after = clock()
        seconds.append(after - before)
        total, before = total + after - before, after
    return seconds
