"""The run's report (one self-contained HTML page) and its model card, from the files of the run folder only.

Reads `results.json` (see `compress/results.py`), and where they are there `curves.csv` (columns step and
loss), `strip.npz` (see `compress/strip.py`) and the artifacts' sidecars. The same files give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
from pydantic import BaseModel, ValidationError

from compress import results, strip, words
from compress.figures import accuracy_figures, finetune_curves, loss_curve, speed_bars
from compress.result_artifacts import Artifact
from compress.results import Accuracy, Results, Throughput
from export.sidecar import Threshold, path_of
from faces.errors import UserError
from faces.files import write_text

_TEMPLATES = Path(__file__).parent / "templates"


class _Sidecar(BaseModel):
    """The part of a sidecar that the card tells; the file itself need not be here."""

    metric: Literal["cosine", "euclidean"]
    thresholds: dict[str, Threshold]

    @property
    def score(self) -> str:
        """What the thresholds are compared with; higher is more alike."""
        return "minus the Euclidean distance" if self.metric == "euclidean" else "cosine"


def write_report(folder: Path) -> Path:
    """Write `folder/report.html` and return its path; UserError if results.json is missing or wrong."""
    folder = Path(folder)
    run = results.load(folder / "results.json")
    view = _view(run) | {
        "figures": accuracy_figures(run),
        "bars": speed_bars(run.throughput),
        "curve": loss_curve(folder / "curves.csv"),
        # A folder used again may hold the curves of an earlier run.
        "finetune": finetune_curves(folder / "finetune.csv") if run.teacher.finetuned else [],
        "strip": strip.read(folder / "strip.npz"),
    }
    return _write(folder / "report.html", "report.html.j2", view)


def write_model_card(folder: Path) -> Path:
    """Write `folder/MODEL_CARD.md` and return its path; UserError if results.json or a sidecar is wrong."""
    folder = Path(folder)
    run = results.load(folder / "results.json")
    view = _view(run) | {"thresholds": _thresholds(run, folder)}
    return _write(folder / "MODEL_CARD.md", "model_card.md.j2", view)


def _write(path: Path, template: str, view: dict[str, Any]) -> Path:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    environment.globals["interval"] = words.interval
    text = environment.get_template(template).render(view)
    write_text(path, text)
    return path


def _view(run: Results) -> dict[str, Any]:
    headline = _headline_row(run.accuracy, run.headline)
    where = (headline.data, headline.split) if headline else None
    here = {(row.model, row.protocol): row for row in run.accuracy if (row.data, row.split) == where}
    full = [row for row in run.accuracy if row.model == "teacher" and row.kind == "full"]
    files = {role: [a for a in run.artifacts if (a.model or "student") == role] for role in ("student", "teacher")}
    # Only files of the teacher may miss: one of the student's ends the run.
    missed = {"student": 0, "teacher": len(run.misses or [])}
    trained = run.student.mode != "none"
    return {
        "r": run,
        "trained": trained,
        "relation": "from" if trained else "beside",
        "headline": headline,
        "where": where,
        "here": here,
        "teacher_full": here.get(("teacher", "full")) or (full[0] if full else None),
        "protocols": _protocols(here, headline),
        "smallest": {
            role: min(own, key=lambda a: (a.parity.passed is not True, a.bytes), default=None)
            for role, own in files.items()
        },
        "parity": {role: _verdict(own, missed[role]) for role, own in files.items()},
        "speed": {role: _fastest(run, role) for role in files},
        "rates": sorted({rate for row in run.accuracy for rate in row.tar_at_far}, key=float, reverse=True),
        "references": run.reference or [],
        "reference_headline": _headline_row(run.reference or [], run.headline, None),
    }


def _headline_row(rows: Sequence[Accuracy], protocol: str, model: str | None = "student") -> Accuracy | None:
    """The row the page opens with: the student at its input size, else its smallest resolution, else its first."""
    own = [row for row in rows if model in (None, row.model)]
    named = [row for row in own if row.protocol == protocol]
    small = sorted((row for row in own if row.kind == "same"), key=lambda row: row.px or 0)
    return next(iter(named + small + own), None)


def _protocols(here: dict[tuple[str, str], Accuracy], headline: Accuracy | None) -> list[str]:
    """Protocols of the headline table: full size, then the headline's resolution within and across."""
    px = f"@{headline.px}" if headline and headline.px else "@"
    there = {protocol for _, protocol in here}
    return [protocol for protocol in ("full", f"same{px}", f"cross{px}") if protocol in there]


def _verdict(artifacts: Sequence[Artifact], missed: int) -> dict[str, Any]:
    """How many artifacts passed, failed, were not judged and are not there, and one word for those that are."""
    verdicts = [artifact.parity.passed for artifact in artifacts]
    passed, failed, open_ = (sum(v is state for v in verdicts) for state in (True, False, None))
    word = "failed" if failed else "not judged" if not passed else "passed"
    counts = {"passed": passed, "failed": failed, "open": open_, "missed": missed}
    return {"word": word, "made": len(verdicts), "all": len(verdicts) + missed} | counts


def _fastest(run: Results, role: str) -> dict[str, Throughput | None]:
    """The fastest rows, of files that passed where there are any."""
    passed = {artifact.path for artifact in run.artifacts if artifact.parity.passed}
    own = [row for row in run.throughput if (row.artifact == "teacher") == (role == "teacher")]

    def rank(row: Throughput) -> tuple[bool, float]:
        return row.artifact in passed, row.faces_per_second

    return {
        "best": max(own, key=rank, default=None),
        "single": max((row for row in own if row.batch == 1), key=rank, default=None),
    }


def _thresholds(run: Results, folder: Path) -> list[tuple[str, dict[str, Threshold], list[str]]]:
    """The sidecars' scores and thresholds by false match rate, with the artifacts that share both."""
    found: list[tuple[str, dict[str, Threshold], list[str]]] = []
    for artifact in run.artifacts:
        file = path_of(folder / artifact.path)
        if not file.is_file():
            continue
        try:
            sidecar = _Sidecar.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise UserError(f"{file} is no sidecar: {error.errors()[0]['msg']}") from None
        told = (sidecar.score, sidecar.thresholds)
        same = next((files for *known, files in found if tuple(known) == told), None)
        if same is not None:
            same.append(artifact.path)
        elif sidecar.thresholds:
            found.append((*told, [artifact.path]))
    return found
