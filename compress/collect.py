"""Stage report: gather what the stages measured into results.json, then write the page and the card."""

import platform
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from compress import results
from compress.config import Config, as_dict
from compress.report import write_model_card, write_report
from compress.run import ROOT, Run, command
from faces.files import printable, write_json
from faces.threads import cores

STAGES = ("data", "teacher", "adapt", "distill", "export", "evaluate", "benchmark")
_PACKAGES = (
    "bridgeface",
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "dlib-bin",
)


def settings(config: Config) -> Any:
    return []


def run(run: Run) -> dict[str, Any]:
    """Writes results.json, report.html and MODEL_CARD.md."""
    facts = {stage: run.facts(stage) for stage in STAGES}
    records = {stage: run.record(stage) for stage in STAGES}
    teacher = {key: value for key, value in facts["teacher"].items() if key != "reference_source"}
    gathered = {
        "schema": 1,
        "teacher": teacher,
        "student": facts["distill"],
        "accuracy": facts["evaluate"]["accuracy"],
        "artifacts": facts["export"]["artifacts"],
        "misses": facts["export"]["misses"] or None,
        "alpha": facts["export"]["alpha"],
        "throughput": facts["benchmark"]["throughput"],
        "seconds": {stage: record["seconds"] for stage, record in records.items()},
        "reference": facts["evaluate"]["reference"] or None,
        "data": {key: facts["data"][key] for key in ("public", "split", "skipped", "landmark_misses")},
        "run": {
            "command": _command(),
            "started": run.started(),
            "cpu": _cpu(),
            "cores": cores(),
            "seeds": {"run": run.config.seed},
            "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
            "config": as_dict(run.config),
            "git": _revision(),
            "warnings": _warnings(facts, run.config),
        },
    }  # fmt: skip
    gathered = printable(gathered)
    results.validate(gathered)
    write_json(run.path("results.json"), gathered)
    page = write_report(run.folder)
    write_model_card(run.folder)
    return {"summary": str(page)}


def _command() -> str:
    """This process's command without what a run is split by: whoever types it gets the whole run, from its start."""
    words = iter(shlex.split(command()))
    kept = []
    for word in words:
        if word == "--stages":
            next(words, None)
        elif word not in ("--dry-run", "--fresh", "--resume") and not word.startswith("--stages="):
            kept.append(word)
    return shlex.join(kept)


def _warnings(facts: dict[str, Any], config: Config) -> list[str]:
    found = []
    taught = ", and the student's," if config.distill.trains else ""
    if facts["teacher"]["bootstrap"]:
        found.append(
            f"The teacher is a bootstrap: random {facts['teacher']['name']} weights fitted to another network. "
            f"Its figures{taught} say nothing about a trained {facts['teacher']['name']}."
        )
    if leaks := facts["data"]["split"]["leaks"]:
        found.append(
            f"The test set is not independent of the training set: {leaks} shared people or near copies, accepted by "
            "data.allow_leaks. Its figures say little of strangers."
        )
    if not config.distill.trains:
        found.append(
            f"The student's weights are those that were given ({config.distill.weights}), not trained here: which "
            "teacher and faces they learnt from, and on what terms, is told where they come from, and whether they saw "
            "the test people is not known here. The teacher named here is what the student is compared with."
        )
    elif config.distill.weights is not None:
        found.append(
            f"The student started from trained weights ({config.distill.weights}): the faces and the teacher that "
            "these saw, and their terms, come on top of those named here."
        )
    found += [
        f"{row['path']} missed its parity tolerance and was kept on request: {row['parity']['reason']}"
        for row in facts["export"]["artifacts"]
        if row["parity"]["passed"] is False
    ]
    return found


def _cpu() -> str | None:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _revision() -> str | None:
    """The checkout's git revision, `+` behind it where files are changed; None outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
