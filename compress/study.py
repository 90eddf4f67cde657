"""Studies over several identity splits: `python -m compress.study splits --help`."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

from benchmarks import output
from compress import data
from compress.adapt import fit_adapter
from compress.adaptation_study import adaptation
from compress.config import PRESETS, Benchmark, Config, Evaluate, Export, as_dict, load_config
from compress.distill import own_features, prepare, start_student, weights_file
from compress.evaluate import test_pairs
from compress.hallucination_study import hallucination
from compress.head_study import head
from compress.idle import refuse_idle
from compress.mode_study import modes
from compress.plan import check
from compress.run import ROOT
from compress.teacher_study import teachers
from export.kit import student_crops
from export.stage import reference_embeddings
from faces.cli import SEED, Output, run_cli, table_console
from faces.dataset import Faces, add_virtual_faces, concatenate, split_identities, split_strangers
from faces.errors import UserError
from faces.files import fingerprint, write_json, write_text
from faces.sources import open_faces
from faces.threads import cores, threads
from faces.verification import correct_by_fold, similarity
from students.train import train_student
from teachers.bootstrap import fit_bootstrap
from teachers.ensemble import Ensemble
from teachers.registry import create_single, create_teacher, weight_files
from teachers.teacher import Teacher

ROWS = {
    "sc relational": {"mode": "sc", "loss": "relational"},
    "sc regression": {"mode": "sc", "loss": "regression"},
    "s relational": {"mode": "s", "loss": "relational"},
    "dc relational": {"mode": "dc", "loss": "relational"},
    "c": {"mode": "c"},
}
"""What is compared with each other and with the `teacher` at full size; `dc` learns the un-adapted feature."""
PAIR_DRAWS = 8
"""The impostor pairs drawn among ten people move an accuracy by a point: each split's is the mean of these draws."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure what one run cannot show: means and spreads over identity splits, seeds and teachers."""


main.add_command(teachers)
main.add_command(modes)
main.add_command(head)
main.add_command(adaptation)
main.add_command(hallucination)


@main.command()
@click.option("--teacher", default="dlib_resnet", show_default=True, metavar="NAME",
              help="Whom the students learn from, as in the pipeline; --set teacher.weights=FILE.")  # fmt: skip
@click.option("--student", default="tiny16", show_default=True,
              help="By name, as in the pipeline; tiny32 sees faces of 32 px.")  # fmt: skip
@click.option("--preset", type=click.Choice(list(PRESETS)), default="quick", show_default=True,
              help="The settings that --set changes, as in the pipeline.")  # fmt: skip
@click.option("--data", "specs", multiple=True, metavar="SPEC", help="Public faces, as in the pipeline. Default: orl.")
@click.option("--splits", default=5, show_default=True, type=click.IntRange(2), help="How many identity splits.")
@click.option("--first", default=0, show_default=True, type=SEED, help="Seed of the first split.")
@click.option(
    "--row", "rows", multiple=True, type=click.Choice(["teacher", *ROWS]), default=("teacher", *ROWS),
    metavar="ROW", help=f"Train only these. Repeats. Default: all of teacher, {', '.join(ROWS)}.",
)  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="As in the pipeline, for all rows, e.g. distill.samples=100000. Repeats.")  # fmt: skip
@click.option("--out", type=Output(folder=True), default=Path("runs/splits"), show_default=True,
              help="Where rows are kept, and splits.json and splits.md go.")  # fmt: skip
@run_cli
def splits(
    teacher: str,
    student: str,
    preset: str,
    specs: tuple[str, ...],
    splits: int,
    first: int,
    rows: tuple[str, ...],
    settings: tuple[str, ...],
    out: Path,
) -> None:
    """Distil a student for each row and identity split; same@p accuracy on the unseen people, mean and spread.

    Every (row, split) is kept in OUT as it ends, so a stopped study continues. Writes OUT/splits.json and
    OUT/splits.md. All rows see the same number of samples, from the same people, and start from the same weights;
    `c` sees labelled faces alone, the others the virtual ones too.
    """
    # The study's teacher is as it is, where the standard preset would fine-tune it.
    options = {"data.public": list(specs) or None, "teacher.name": teacher, "distill.student": student,
               "teacher.finetune.method": "none"}  # fmt: skip
    configs = {
        name: load_config(
            preset, None, {**options, **{f"distill.{k}": v for k, v in ROWS.get(name, {}).items()}}, settings
        )
        for name in rows
    }
    for name, config in configs.items():
        _check_row(name, config)
    refuse_idle(list(configs.values()), settings)
    check(next(iter(configs.values())), out)
    with threads(1):
        found = _gather(configs, range(first, first + splits), out)
    _write(found, out, next(iter(configs.values())))


def _check_row(name: str, config: Config) -> None:
    """UserError where --set contradicts what the row's name or the study says, or would have no effect."""
    given: dict[str, tuple[Any, Any]] = {
        "seed": (config.seed, 0),
        "data.val": (config.data.val, None),
        "data.pairs": (config.data.pairs, None),
        "teacher.mirror": (config.teacher.mirror, False),
        "teacher.finetune.method": (config.teacher.finetune.method, "none"),
        "export": (config.export, Export()),
        "evaluate.px": (config.evaluate.px, Evaluate().px),
        "benchmark": (config.benchmark, Benchmark()),
    }
    given |= {f"distill.{key}": (getattr(config.distill, key), value) for key, value in ROWS.get(name, {}).items()}
    for key, (found, wanted) in given.items():
        if found != wanted:
            raise UserError(f"--set {key}={found}: in row {name!r} of this study it is {wanted}; leave it out")


def _gather(configs: dict[str, Config], seeds: range, out: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in configs}
    faces: Faces | None = None
    work = [(seed, name) for seed in seeds for name in configs]
    prepared: dict[int, _Split] = {}
    for seed, name in track(work, "splits", console=Console(stderr=True), transient=True):
        config = configs[name]
        file = out / "rows" / f"{name.replace(' ', '-')}-{seed}-{_key(config, name)}.json"
        if not file.exists():
            how = config.data
            faces = faces or concatenate(
                [open_faces(spec, detector=how.detector, aligned=how.aligned) for spec in how.public]
            )
            if seed not in prepared:
                prepared = {seed: _Split(faces, config, seed, out)}
            split = prepared[seed]
            write_json(file, split.teacher_row() if name == "teacher" else split.student_row(config))
        found[name].append(json.loads(file.read_text()))
    return found


def _key(config: Config, name: str) -> str:
    """Changes with the settings, the data, the sources and PyTorch: a row is never mixed with those of other code."""
    folders = [ROOT / package for package in ("faces", "teachers", "students", "compress")]
    sources = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    weights = [*weight_files(config.teacher.name, config.teacher.weights), weights_file(config.distill)]
    files = [*sources, *(Path(file) for file in weights if file)]
    return fingerprint([as_dict(config), name, data.settings(config), torch.__version__], files)


class _Split:
    """One identity split with the teacher's features of both sides."""

    def __init__(self, faces: Faces, config: Config, seed: int, out: Path) -> None:
        if config.data.allow_leaks:
            real, self.test = (faces.subset(rows) for rows in split_identities(faces, config.data.test_share, seed))
        else:
            real, self.test, _ = split_strangers(faces, config.data.test_share, seed)
        self.seed = seed
        self.train = add_virtual_faces(real, config.data.virtual, seed)
        self.teacher = create_teacher(config.teacher.name, config.teacher.weights)
        if isinstance(self.teacher, Teacher) and self.teacher.bootstrap:
            cache = out / "bootstrap" / str(seed)
            reference = create_single("dlib_resnet")
            with threads(cores()):
                fit_bootstrap(self.teacher, real, reference, cache, config.teacher.views, seed)
        self.config, self.out = config, out

    @functools.cached_property
    def features(self) -> np.ndarray:
        """The teacher's features of the training side, (N, D) float32."""
        return _features(self.teacher, self.train)

    def teacher_row(self) -> dict[str, Any]:
        """The teacher at full size on the unseen people."""
        return self._row("full", _features(self.teacher, self.test), self.teacher.metric)

    def student_row(self, config: Config) -> dict[str, Any]:
        how = config.distill
        targets = None
        if how.mode == "dc":
            targets = own_features(self.features)
        elif how.mode != "c":
            adapter, _ = fit_adapter(self.features, self.train.identities, config.adapt, self.seed)
            targets = adapter.targets(self.features)
        student = start_student(how, self.seed)
        train_student(
            student,
            prepare(self.train, targets, how, student.input_px, self.seed, self.out),
            how,
            self.seed,
            config.device,
        )
        px = student.input_px
        return self._row(f"same@{px}", reference_embeddings(student, student_crops(self.test, px, px)), "cosine")

    def _row(self, protocol: str, embeddings: np.ndarray, metric: str) -> dict[str, Any]:
        """Mean accuracy (percent) over the pair draws."""
        draws = []
        for draw in range(1 if self.config.data.pairs else PAIR_DRAWS):
            pairs = test_pairs(self.test, self.config, self.seed * PAIR_DRAWS + draw)
            scores = similarity(embeddings[pairs.a], embeddings[pairs.b], metric)
            draws.append(100 * float(correct_by_fold(scores, pairs).mean()))
        return {"protocol": protocol, "accuracy": float(np.mean(draws)), "draws": draws}


def _features(teacher: Teacher | Ensemble, faces: Faces) -> np.ndarray:
    with threads(cores()):
        return teacher.embed_faces(faces)


def _write(found: dict[str, list[dict[str, Any]]], out: Path, config: Config) -> None:
    table = [_summary(name, rows) for name, rows in found.items()]
    students = [entry for entry in table if entry["row"] != "teacher"]
    best = max(students or table, key=lambda entry: entry["mean"])
    for entry in students:
        if entry is not best:
            entry["behind_best"] = _paired(best["accuracy"], entry["accuracy"])
    heads, cells = ("row", "protocol", "mean", "sd", "by split", "behind best"), [list(_cells(one)) for one in table]
    teacher, student = config.teacher.name, config.distill.student
    lines = [
        f"Teacher {teacher}, student {student}, {' + '.join(config.data.public)}, "
        f"{config.distill.samples:,} degraded faces seen by each student; accuracy in % on the unseen people of "
        f"{len(best['accuracy'])} identity splits, each the mean of {PAIR_DRAWS} draws of pairs. "
        f"Behind best: mean paired difference with its 95% t-interval, which is too narrow: splits share people, and "
        f"the best is chosen by these very figures.",
        "",
        *output.table(heads, cells),
    ]
    shown = Table(*heads, box=box.SIMPLE_HEAD)
    for line in cells:
        shown.add_row(*line)
    write_json(out / "splits.json", {"schema": 1, "torch": torch.__version__, "rows": table, "config": as_dict(config)})
    write_text(out / "splits.md", "\n".join(lines) + "\n")
    table_console().print(shown)


def _summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    accuracy = [one["accuracy"] for one in rows]
    return {
        "row": name,
        "protocol": rows[0]["protocol"],
        "accuracy": accuracy,
        "mean": float(np.mean(accuracy)),
        "sd": float(np.std(accuracy, ddof=1)),
    }


def _paired(best: list[float], other: list[float]) -> dict[str, float]:
    difference = np.subtract(best, other)
    half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference)
    return {
        "mean": float(difference.mean()),
        "low": float(difference.mean() - half),
        "high": float(difference.mean() + half),
    }


def _cells(entry: dict[str, Any]) -> Iterator[str]:
    yield entry["row"]
    yield entry["protocol"]
    yield f"{entry['mean']:.1f}"
    yield f"{entry['sd']:.1f}"
    yield " ".join(f"{value:.1f}" for value in entry["accuracy"])
    gap = entry.get("behind_best")
    yield f"{gap['mean']:.1f} [{gap['low']:.1f}, {gap['high']:.1f}]" if gap else "-"


if __name__ == "__main__":
    main()
