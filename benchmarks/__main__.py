"""`python -m benchmarks`: what can be measured, and what was."""

import json
from pathlib import Path
from typing import Any, ClassVar

import click

from benchmarks.lazy import LazyGroup, refuse_before
from faces.cli import run_cli

RESULTS = Path(__file__).parent / "results"
QUESTIONS = (
    ("How fast on this CPU?", "python -m benchmarks.throughput --full --student tiny16", "throughput"),
    ("What bounds it?", "python -m benchmarks profile FILE...", "profile"),
    ("How fast on this GPU?", "python -m benchmarks gpu", "gpu"),
    ("How fast on a phone, or an ARM core?", "python -m benchmarks.mobile", "mobile"),
    ("Against what else one could install?", "python -m benchmarks.peers", "peers"),
    ("How accurate, under which protocol?", "python -m benchmarks.accuracy protocols", "protocols"),
    ("What is an interval worth?", "python -m benchmarks coverage", "coverage"),
    ("How fast does it train?", "python -m benchmarks.throughput train --student tiny16", "training"),
    ("Did anything become slower?", "python -m benchmarks compare OLD.json NEW.json", None),
)


class _Commands(LazyGroup):
    lazy: ClassVar = {
        "compare": ("benchmarks.compare:main", "Which rows of two files moved beyond their noise."),
        "coverage": ("benchmarks.coverage:main", "How often the 95% intervals hold the truth, on made people."),
        "gpu": ("benchmarks.gpu:main", "All that waits for a GPU, in ten minutes, as JSON."),
        "mobile": ("benchmarks.mobile:main", "A phone over adb, or instructions per face under qemu."),
        "peers": ("benchmarks.peers:main", "Other embedders on the same clock and pairs."),
        "profile": ("benchmarks.operators:main", "Time by operator, and what bounds it."),
        "throughput": ("benchmarks.throughput:main", "Faces per second of exported models."),
        "accuracy": ("benchmarks.accuracy:main", "The papers' tables on your data."),
    }


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Where kept results lie.")
@click.pass_context
@run_cli
def main(context: click.Context, results: Path) -> None:
    """How fast and how accurate, on this machine and under which protocol; without a command: what is known so far."""
    if context.invoked_subcommand is not None:
        refuse_before(context)
        return
    for question, command, name in QUESTIONS:
        click.echo(f"{question}\n    {command}")
        file = results / f"{name}.json"
        if name is not None and file.is_file():
            try:
                told = _best(json.loads(file.read_text()))
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                told = "damaged: measure it again, or move it away"
            click.echo(f"    kept in {file}: {told}")


def _best(found: dict[str, Any]) -> str:
    rows = [row for row in found.get("throughput", []) if row.get("faces_per_second")]
    if not rows:
        return (
            ", ".join(f"{len(value)} {name}" for name, value in found.items() if isinstance(value, list)) or "no rows"
        )
    best = max(rows, key=lambda row: row["faces_per_second"])
    # A loop of a training is no artifact.
    named = [str(best[name]) for name in ("artifact", "model", "student", "loop", "runtime") if name in best]
    return (
        f"{len(rows)} rows, at best {best['faces_per_second']:,.0f} faces/s ({', '.join(named)}, batch {best['batch']})"
    )


if __name__ == "__main__":
    main()
