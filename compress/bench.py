"""Stage benchmark: faces per second of the exported files on this machine's CPU."""

from typing import Any

import export
from benchmarks.throughput import measure
from compress.artifacts import runnable
from compress.config import Config
from compress.run import Run


def settings(config: Config) -> Any:
    return config.benchmark


def run(run: Run) -> dict[str, Any]:
    how = run.config.benchmark
    files = [run.path(row["path"]) for row in runnable(run.facts("export")["artifacts"])]
    rows = []
    with run.progress("benchmark", len(files) * len(how.batches)) as advance:
        for file in files:
            artifact = export.load(file, threads=how.threads)
            for batch in how.batches:
                rows.append(measure(artifact, batch, windows=how.windows))
                advance(1)
    best = max(rows, key=lambda row: row["faces_per_second"])
    return {
        "summary": f"at best {best['faces_per_second']:,.0f} faces/s ({best['artifact']}, batch {best['batch']}, "
        f"{best['threads']} thread(s), pre-processing outside), {100 * best['share']:.0f}% of the measured peak",
        "throughput": rows,
    }
