"""The clock: faces per second and latency of one artifact at one batch size."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peak import sgemm_gops
from export.runtimes import Artifact

MIN_CALLS = 100
"""Calls wanted before a 99th percentile is read from them."""


def measure(
    artifact: Artifact,
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
    calls; peak_gops: GFLOP/s of a large sgemm on as many threads; share: faces/s * 2 * macs of that peak.
    """
    contract = artifact.sidecar
    rng = np.random.default_rng(0)
    px = contract.input.px
    faces = artifact.prepare(rng.integers(0, 256, (batch, px, px, 3), dtype=np.uint8))
    peak = sgemm_gops(artifact.threads)
    _warm_up(artifact, faces, window_seconds, clock)
    rates: list[float] = []
    calls: list[float] = []
    began = clock()
    while len(rates) < windows or (len(calls) < MIN_CALLS and clock() - began < most_seconds):
        seconds = _window(artifact, faces, window_seconds, clock)
        rates.append(batch * len(seconds) / sum(seconds))
        calls += seconds
    return {
        "artifact": artifact.path.name,
        "runtime": artifact.runtime,
        "device": "cpu",
        "threads": artifact.threads,
        "batch": batch,
        "precision": contract.precision,
        "input_px": px,
        "preprocessing": False,
        **summary(rates, calls, contract.macs, peak),
    }


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


def _warm_up(artifact: Artifact, faces: np.ndarray, seconds: float, clock: Callable[[], float]) -> None:
    # The first calls allocate memory and raise the core's clock.
    end = clock() + 2 * seconds
    for _ in range(3):
        artifact.run(faces)
    while clock() < end:
        artifact.run(faces)


def _window(artifact: Artifact, faces: np.ndarray, least_seconds: float, clock: Callable[[], float]) -> list[float]:
    """Seconds of each call, back to back, until they sum up to `least_seconds`."""
    seconds: list[float] = []
    total, before = 0.0, clock()
    while total < least_seconds:
        artifact.run(faces)
        after = clock()
        seconds.append(after - before)
        total, before = total + after - before, after
    return seconds
