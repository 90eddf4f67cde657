"""Students by mode, loss, recipe and number of teachers on fixed pairs: `python -m compress.study modes --help`."""

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.markdown import Markdown

from benchmarks.output import cell, table
from compress.adapt import fit_adapter
from compress.config import Config, load_config
from compress.distill import own_features, prepare, start_student, weights_file
from compress.mode_rows import TABLES, Row, Table
from compress.part_scores import (
    METRICS,
    SEEDS,
    check_models,
    check_unused,
    mean_values,
    summary,
    teacher_features,
    two_cells,
)
from compress.rows import read_row, row_file, write_row
from export.kit import student_crops
from export.stage import reference_embeddings
from faces.cli import Output, run_cli, table_console
from faces.dataset import Faces, check_strangers, concatenate, virtual_faces
from faces.errors import UserError
from faces.files import write_json, write_text
from faces.parts import Part, open_parts
from faces.sources import open_faces
from faces.threads import threads
from faces.verification import similarity
from students.registry import create_student
from students.train import takes_sizes, train_student
from teachers.registry import weight_files


@click.command()
@click.option("--teacher", default="dlib_resnet", show_default=True, metavar="NAME",
              help="Whom the student learns from, as in the pipeline, e.g. onnx:FILE.")  # fmt: skip
@click.option("--second", metavar="NAME", help="Another teacher, for the rows with two. Default: those are not run.")
@click.option("--student", default="tiny16", show_default=True,
              help="By name, as in the pipeline; tiny32 sees faces of 32 px.")  # fmt: skip
@click.option("--data", "specs", multiple=True, required=True, metavar="SPEC", help="Faces to learn from. Repeats.")
@click.option("--val", "vals", nargs=2, multiple=True, required=True, metavar="SPEC PAIRS.csv",
              help="Other people to measure on, and their fixed pairs. Repeats.")  # fmt: skip
@click.option("--table", "tables", multiple=True, type=click.Choice(list(TABLES)),
              help="What is compared: modes and losses of distillation, classification losses, or the recipe, one "
              "change at a time. Repeats. Default: all.")  # fmt: skip
@click.option("--row", "names", multiple=True, metavar="NAME",
              help='Train only rows of this name, e.g. "sc, relational". Repeats.')  # fmt: skip
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0, SEEDS - 1), default=(0, 1, 2),
              show_default=True,
              help="Train these; the table is the mean over all that are kept. Repeats.")  # fmt: skip
@click.option("--read-only", is_flag=True, help="Train nothing: write the tables of what was trained.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="As in the pipeline, for all rows, e.g. distill.samples=150000. Repeats.")  # fmt: skip
@click.option("--folder", type=Output(folder=True), default=Path("runs/modes"), show_default=True,
              help="Where rows and teachers' features are kept, for the study of the adaptation too.")  # fmt: skip
@click.option("--out", type=Output(folder=True), default=Path("benchmarks/results/students"), show_default=True,
              help="Where STUDENT-TABLE.json and .md go.")  # fmt: skip
@run_cli
def modes(
    teacher: str, second: str | None, student: str, specs: tuple[str, ...], vals: tuple[tuple[str, str], ...],
    tables: tuple[str, ...], names: tuple[str, ...], seeds: tuple[int, ...], read_only: bool,
    settings: tuple[str, ...], folder: Path, out: Path,
) -> None:  # fmt: skip
    """Distil a student for each row and seed of a table, from equally many faces, and measure it on fixed pairs.

    A row and seed is kept in FOLDER as it ends, so a stopped table continues; one that was not trained says so.
    Writes OUT/STUDENT-TABLE.json and .md. `cross`: the first face embedded by the teacher at full size.
    """
    options = {"teacher.name": teacher, "distill.student": student}
    config = load_config("standard", None, options, settings)
    check_unused(config, load_config("standard", None, options, ()))
    chosen = {name: TABLES[name] for name in tables or TABLES}
    known = {row.name for table in chosen.values() for row in table.rows}
    if unknown := set(names) - known:
        raise UserError(f"no row is named {sorted(unknown)[0]!r}. Rows: {'; '.join(sorted(known))}")
    named = _teachers(teacher, second)
    work = {
        name: [
            row
            for row in one.rows
            if (not names or row.name in names)
            and named[row.teachers]
            and takes_sizes(create_student(student), row.changes.get("sizes", ()))
        ]
        for name, one in chosen.items()
    }
    needed = [named[row.teachers] for rows in work.values() for row in rows]
    check_models(config, filter(None, needed), read_only)
    train = concatenate([open_faces(spec) for spec in specs])
    parts = open_parts(vals)
    check_strangers(train, *(part.faces for part in parts))
    study = _Study(config, second, train, parts, folder)
    for name, one in chosen.items():
        for seed in () if read_only else seeds:
            for row in work[name]:
                click.echo(f"{name}: {row.name}, seed {seed}", err=True)
                study.run(row, seed)
        rows = [study.entry(one, row) for row in one.rows]
        told = {"title": one.title, "baseline": one.baseline, "student": student, "teacher": teacher,
                "second": second and second.rpartition("/")[2], "samples": config.distill.samples,
                "data": [Path(spec).name for spec in specs], "rows": rows}  # fmt: skip
        write_json(out / f"{student}-{name}.json", told)
        text = _markdown(told, [part.name for part in study.parts])
        write_text(out / f"{student}-{name}.md", text)
        table_console().print(Markdown(text))


def _teachers(first: str, second: str | None) -> dict[str, str | None]:
    """By `Row.teachers`; None where a second teacher is needed and none was named."""
    return {"first": first, "second": second, "both": second and f"{first}+{second}"}


class _Study:
    def __init__(self, config: Config, second: str | None, train: Faces, parts: list[Part], folder: Path) -> None:
        self.config, self.train, self.parts, self.folder = config, train, parts, folder
        self.teachers = _teachers(config.teacher.name, second)

    def _path(self, row: Row, seed: int) -> Path:
        teacher, how = self.teachers[row.teachers], dataclasses.replace(self.config.distill, **row.changes)
        made = [
            teacher,
            row.mirror,
            row.virtual,
            dataclasses.asdict(self.config.adapt),
            dataclasses.asdict(how),
            seed,
            self.train.state(),
            [part.state() for part in self.parts],
        ]
        files = [*(weight_files(teacher) if teacher else []), weights_file(how)]
        return row_file(self.folder, made, row.name, seed, files=filter(None, files))

    def run(self, row: Row, seed: int) -> None:
        """Distil and measure unless that was done; keeps the scores of the pairs (P,) by PART/PROTOCOL."""
        path, teacher = self._path(row, seed), self.teachers[row.teachers]
        if path.is_file() or teacher is None:
            return
        how = dataclasses.replace(self.config.distill, **row.changes)
        train, features, gallery = self._faces(row), np.empty((0, 0), np.float32), {}
        if how.mode != "c":
            features = self._features(row, teacher)
            gallery = {part.name: teacher_features(teacher, part.faces, self.folder) for part in self.parts}
        with threads(1):
            targets, shared = None, {}
            if how.mode == "dc":
                targets, mean = own_features(features), features.mean(0)
                shared = {name: values - mean for name, values in gallery.items()}
            elif how.mode != "c":
                adapter, _ = fit_adapter(features, train.identities, self.config.adapt, seed)
                targets = adapter.targets(features)
                shared = {name: adapter.targets(values) for name, values in gallery.items()}
            student = start_student(how, seed)
            examples = prepare(train, targets, how, student.input_px, seed, self.folder)
            train_student(student, examples, how, seed, self.config.device)
            px = student.input_px
            scores: dict[str, np.ndarray] = {}
            for part in self.parts:
                a, b = part.pairs.a, part.pairs.b
                low = reference_embeddings(student, student_crops(part.faces, px, px))
                scores[f"{part.name}/same@{px}"] = similarity(low[a], low[b], "cosine")
                # A student of other width than its target has no common space with it.
                if part.name in shared and shared[part.name].shape[1] == low.shape[1]:
                    scores[f"{part.name}/cross@{px}"] = similarity(shared[part.name][a], low[b], "cosine")
        write_row(path, scores)

    def _faces(self, row: Row) -> Faces:
        """The faces that a row's student learns from."""
        return concatenate([self.train, self._virtual(row.virtual)]) if row.virtual else self.train

    def _features(self, row: Row, teacher: str) -> np.ndarray:
        """The teacher's features of them, (N, D) float32: the virtual faces' are kept beside the real ones'."""
        sets = [self.train, self._virtual(row.virtual)] if row.virtual else [self.train]
        return np.concatenate([teacher_features(teacher, faces, self.folder, row.mirror) for faces in sets])

    def _virtual(self, count: int) -> Faces:
        """Made once, as the pipeline's data stage makes them, and the same for every row and seed."""
        file = self.folder / f"virtual-{count}-{self.train.state()}.npz"
        if not file.is_file():
            made = virtual_faces(self.train, count, seed=0)
            # What a face's features are kept by: those of another set's virtual faces are others.
            dataclasses.replace(made, keys=tuple(f"{file.stem}/{key}" for key in made.keys)).save(file)
        return Faces.load(file)

    def _values(self, row: Row) -> tuple[list[int], dict[str, dict[str, np.ndarray]]]:
        """The seeds that were trained, and by PART/PROTOCOL and metric the mean over them of each pair's value."""
        seeds = range(SEEDS) if self.teachers[row.teachers] else ()
        held = {seed: kept for seed in seeds if (kept := read_row(self._path(row, seed))) is not None}
        pairs = {part.name: part.pairs for part in self.parts}
        return list(held), {
            name: mean_values([one[name] for one in held.values()], pairs[name.partition("/")[0]])
            for name in next(iter(held.values()), {})
        }

    def entry(self, table: Table, row: Row) -> dict[str, Any]:
        seeds, mine = self._values(row)
        other = table.baseline_of(row)
        baseline = self._values(other)[1] if other else {}
        parts: dict[str, Any] = {part.name: {} for part in self.parts}
        named = {part.name: part for part in self.parts}
        for name, values in mine.items():
            part, _, protocol = name.partition("/")
            parts[part][protocol] = summary(values, baseline.get(name), named[part])
        return {"row": row.name, "seeds": seeds, "parts": parts}


def _markdown(told: dict[str, Any], parts: list[str]) -> str:
    teachers = f"{told['teacher']}{' and ' + told['second'] if told['second'] else ''}"
    lines = [f"### {told['title']}", "",
             f"{told['student']} from {teachers}, {told['samples']:,} degraded faces seen by each student; "
             f"%, 95% intervals, differences from `{told['baseline']}` pair by pair, mean over the seeds."]  # fmt: skip
    for part in parts:
        protocols = list(dict.fromkeys(name for row in told["rows"] for name in row["parts"][part]))
        heads = [text for protocol in protocols for text in (protocol, "from baseline", METRICS["tpr"].strip(", "))]
        body = []
        for row in told["rows"]:
            found = [row["parts"][part].get(protocol, {}) for protocol in protocols]
            cells = [text for one in found for text in (*two_cells(one.get("accuracy")), cell(one.get("tpr")))]
            if cells and not row["seeds"]:
                cells[:1] = ["not run"]
            body.append([row["row"], str(len(row["seeds"])), *cells])
        lines += ["", f"`{part}`:", "", *table(["row", "seeds", *heads], body)]
    return "\n".join(lines) + "\n"
