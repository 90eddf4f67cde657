"""Batch 1 as a camera sees it: percentiles in a hot loop, after a pause, and with pre-processing inside."""

import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.cpu_runtimes import Runner
from benchmarks.timing import arithmetic_of, random_faces, timed_row
from export.crops import model_crops
from faces.align import TEMPLATES
from faces.dataset import CROP_PX

CALLS = 2000
PAUSE = 0.02
PAUSED_CALLS = 100
BYTES, CROP = "bytes to tensor", "128 px crop and landmarks to tensor"
"""What pre-processing is inside: the model's own bytes turned into its input; or the whole way from an upright photo
crop with five landmarks (warped to the template, reduced, turned)."""


def full_row(
    artifact: Runner, batch: int, cores: list[int], *, windows: int = 10, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """`timing.measure`'s row and: `cores` it was pinned to, `arithmetic` (whose peak it is held against), `scaled`
    (faces/s and share as a core without other work would give them; None on several threads), and at batch 1 the
    percentiles of 2,000 calls in a hot loop and of 100 calls 20 ms apart."""
    faces = artifact.prepare(random_faces(artifact, batch))
    row = _row(artifact, lambda: artifact.run(faces), batch, False, cores, windows, clock)
    if batch == 1:
        row["hot"] = percentiles(_calls(artifact, faces, CALLS, 0, clock))
        row["paused"] = percentiles(_calls(artifact, faces, PAUSED_CALLS, PAUSE, clock)) | {"pause_ms": PAUSE * 1e3}
    return row


def with_preprocessing(
    artifact: Runner,
    batch: int,
    cores: list[int],
    what: str,
    *,
    windows: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The row with pre-processing inside: `BYTES` or `CROP`, which runs on the threads that the artifact has."""
    if what == BYTES:
        faces = random_faces(artifact, batch)

        def call() -> object:
            return artifact.run(artifact.prepare(faces))

    else:
        rng, contract = np.random.default_rng(0), artifact.sidecar
        photos = rng.integers(0, 256, (batch, CROP_PX, CROP_PX, 3), dtype=np.uint8)
        base, points = TEMPLATES[contract.crop.template]
        landmarks = np.stack([points * (CROP_PX / base) + rng.normal(0, 1, points.shape) for _ in range(batch)])

        def call() -> object:
            return artifact.run(artifact.prepare(model_crops(photos, landmarks, contract)))

    before = cv2.getNumThreads()
    cv2.setNumThreads(artifact.threads)
    try:
        with threadpool_limits(artifact.threads, user_api="blas"):
            return _row(artifact, call, batch, what, cores, windows, clock)
    finally:
        cv2.setNumThreads(before)


def _row(
    artifact: Runner,
    call: Callable[[], object],
    batch: int,
    preprocessing: bool | str,
    cores: list[int],
    windows: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    row, alone = timed_row(artifact, call, batch, preprocessing, windows, 0.05, 5.0, clock)
    share = None if row["share"] is None or alone is None else row["share"] * alone / row["faces_per_second"]
    scaled = {"faces_per_second": alone, "share": share}
    return row | {"cores": cores, "arithmetic": arithmetic_of(artifact), "scaled": scaled}


def percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1e3
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99), "calls": len(seconds)}


def _calls(artifact: Runner, faces: np.ndarray, count: int, pause: float, clock: Callable[[], float]) -> list[float]:
    for _ in range(3):
        artifact.run(faces)
    found = []
    for _ in range(count):
        if pause:
            time.sleep(pause)
        start = clock()
        artifact.run(faces)
        found.append(clock() - start)
    return found
