"""MLPerf's LoadGen around an artifact: figures by a rule book that is not ours."""

import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_runtimes import Runner
from benchmarks.timing import precision_of, random_faces
from faces.errors import UserError

SCENARIOS = ("SingleStream", "Offline")
OFFICIAL_SECONDS = 600
_SAMPLES = 1024


def run(artifact: Runner, scenario: str, batch: int, seconds: float) -> dict[str, Any]:
    """One LoadGen run of `seconds` at least, in performance mode; its own verdict and figures.

    SingleStream: one face a query, the next when it is answered; `p90_ms` is its metric. Offline: all faces in one
    query, which this side runs in batches of `batch`; `faces_per_second` is its metric. The rule book asks for 600
    seconds: a shorter run says so in `official_length`.
    """
    loadgen = _loadgen()
    if scenario not in SCENARIOS:
        raise UserError(f"unknown scenario {scenario!r}. Known: {', '.join(SCENARIOS)}")
    faces = artifact.prepare(random_faces(artifact, _SAMPLES))
    for size in {1, batch}:
        artifact.run(np.ascontiguousarray(faces[:size]))

    def issue(samples: Any) -> None:
        size = batch if scenario == "Offline" else 1
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            artifact.run(np.ascontiguousarray(faces[[sample.index for sample in part]]))
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in part])

    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(seconds * 1000)
    settings.min_query_count = 1 if scenario == "Offline" else 100
    settings.offline_expected_qps = _rate(artifact, faces, batch)
    # Half of what it takes, as LoadGen makes its queries beforehand and must not run out of them.
    settings.single_stream_expected_latency_ns = int(0.5e9 / _rate(artifact, faces, 1))
    with tempfile.TemporaryDirectory(prefix="loadgen-") as folder:
        log = loadgen.LogSettings()
        log.enable_trace = False
        log.log_output.outdir = folder
        log.log_output.copy_summary_to_stdout = False
        sut = loadgen.ConstructSUT(issue, lambda: None)
        library = loadgen.ConstructQSL(_SAMPLES, _SAMPLES, lambda indices: None, lambda indices: None)
        try:
            loadgen.StartTestWithLogSettings(sut, library, settings, log)
        finally:
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(sut)
        text = Path(folder, "mlperf_log_summary.txt").read_text()
    return {
        "artifact": artifact.path.name,
        "runtime": artifact.runtime,
        "threads": artifact.threads,
        "precision": precision_of(artifact),
        "scenario": scenario,
        "batch": batch if scenario == "Offline" else 1,
        "seconds": seconds,
        "official_length": seconds >= OFFICIAL_SECONDS,
    } | parse(text)


def parse(summary: str) -> dict[str, Any]:
    """What LoadGen's mlperf_log_summary.txt says: `valid`, `faces_per_second`, and the latencies of single queries
    (Offline has but one query)."""
    single = "Scenario : SingleStream" in summary
    percentile = {
        name: float(value) / 1e6
        for name, value in re.findall(r"^(\d\d\.\d\d) percentile latency \(ns\)\s*:\s*(\d+)", summary, re.M)
        if single
    }
    rate = re.search(r"^(?:Samples per second|QPS w/o loadgen overhead)\s*:\s*([\d.e+]+)", summary, re.M)
    result = re.search(r"^Result is\s*:\s*(\w+)", summary, re.M)
    if result is None:
        raise UserError("LoadGen wrote a summary without a result: another version of mlcommons-loadgen is needed")
    return {
        "valid": result[1] == "VALID",
        "faces_per_second": float(rate[1]) if rate else None,
        "p50_ms": percentile.get("50.00"),
        "p90_ms": percentile.get("90.00"),
        "p99_ms": percentile.get("99.00"),
    }


def _rate(artifact: Runner, faces: np.ndarray, batch: int) -> float:
    """About how many faces a second: LoadGen wants to know, to make its one query long enough."""
    some = np.ascontiguousarray(faces[: min(batch, _SAMPLES)])
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.3:
        artifact.run(some)
        count += len(some)
    return count / (time.perf_counter() - start)


def _loadgen() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as problem:
        raise UserError(f"LoadGen is not installed ({problem}): pip install 'bridgeface[loadgen]'") from None
    return mlperf_loadgen
