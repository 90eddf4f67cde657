"""Students by mode, loss, recipe and number of teachers on fixed pairs: `python -m compress.study modes --help`."""

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from compress.adapt import fit_adapter
from compress.config import Config, load_config
from compress.distill import own_features, prepare, start_student
from compress.mode_rows import TABLES, Row, Table
from compress.run import cores, threads
from export.kit import student_crops
from export.stage import reference_embeddings
from faces.cli import run_cli
from faces.dataset import Faces, concatenate
from faces.errors import UserError
from faces.files import fingerprint, whole, write_json, write_text
from faces.sources import open_faces
from faces.verification import Pairs, bootstrap_interval, correct_by_fold, read_pairs, similarity
from students.train import train_student
from teachers.registry import create_teacher


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    faces: Faces
    pairs: Pairs


@click.command()
@click.option("--teacher", default="dlib_resnet", show_default=True)
@click.option("--second", metavar="NAME", help="The second teacher of the rows with two, e.g. onnx:FILE.")
@click.option("--student", default="tiny16", show_default=True)
@click.option("--data", "specs", multiple=True, required=True, metavar="SPEC", help="Faces to learn from. Repeats.")
@click.option("--val", "vals", nargs=2, multiple=True, required=True, metavar="SPEC PAIRS.csv",
              help="Other people to measure on, and their fixed pairs. Repeats.")  # fmt: skip
@click.option("--table", "tables", multiple=True, type=click.Choice(list(TABLES)), help="Repeats. Default: all.")
@click.option("--row", "names", multiple=True, metavar="NAME", help="Only rows of this name. Repeats.")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0), default=(0, 1, 2), show_default=True)
@click.option("--read-only", is_flag=True, help="Train nothing: write the tables of what was trained.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As in the pipeline, for all rows.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/modes"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/students"), show_default=True)
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
    config = load_config("standard", None, {"teacher.name": teacher, "distill.student": student}, settings)
    chosen = {name: TABLES[name] for name in tables or TABLES}
    known = {row.name for table in chosen.values() for row in table.rows}
    if unknown := set(names) - known:
        raise UserError(f"no row is named {sorted(unknown)[0]!r}. Rows: {'; '.join(sorted(known))}")
    train = concatenate([open_faces(spec) for spec in specs])
    parts = []
    for spec, file in vals:
        faces = open_faces(spec)
        parts.append(Part(Path(spec).name.split(".")[0], faces, read_pairs(Path(file), faces.keys)))
    study = _Study(config, second, train, parts, folder)
    for name, table in chosen.items():
        for seed in () if read_only else seeds:
            for row in table.rows:
                if (not names or row.name in names) and (second or not row.both):
                    click.echo(f"{name}: {row.name}, seed {seed}", err=True)
                    study.run(row, seed)
        rows = [study.entry(table, row) for row in table.rows]
        told = {"title": table.title, "baseline": table.baseline, "student": student, "teacher": teacher,
                "second": second and second.rpartition("/")[2], "samples": config.distill.samples,
                "data": [Path(spec).name for spec in specs], "rows": rows}  # fmt: skip
        write_json(out / f"{student}-{name}.json", told)
        text = _markdown(told, [part.name for part in parts])
        write_text(out / f"{student}-{name}.md", text)
        Console().print(Markdown(text))


class _Study:
    def __init__(self, config: Config, second: str | None, train: Faces, parts: list[Part], folder: Path) -> None:
        self.config, self.second, self.train, self.parts, self.folder = config, second, train, parts, folder

    def _teacher(self, row: Row) -> str:
        return f"{self.config.teacher.name}+{self.second}" if row.both else self.config.teacher.name

    def _path(self, row: Row, seed: int) -> Path:
        how = dataclasses.asdict(dataclasses.replace(self.config.distill, **row.changes))
        made = [
            self._teacher(row),
            dataclasses.asdict(self.config.adapt),
            how,
            seed,
            self.train.keys,
            [p.name for p in self.parts],
        ]
        return self.folder / "rows" / f"{row.name.replace(' ', '-').replace(',', '')}-{seed}-{fingerprint(made)}.npz"

    def run(self, row: Row, seed: int) -> None:
        """Distil and measure unless that was done: which pairs were right, by part and protocol."""
        path = self._path(row, seed)
        if path.is_file():
            return
        how = dataclasses.replace(self.config.distill, **row.changes)
        features = self._features(self._teacher(row), self.train)
        gallery = {part.name: self._features(self._teacher(row), part.faces) for part in self.parts}
        with threads(1):
            targets, shared = None, {}
            if how.mode == "dc":
                targets, mean = own_features(features), features.mean(0)
                shared = {name: values - mean for name, values in gallery.items()}
            elif how.mode != "c":
                adapter, _ = fit_adapter(features, self.train.identities, self.config.adapt, seed)
                targets = adapter.targets(features)
                shared = {name: adapter.targets(values) for name, values in gallery.items()}
            student = start_student(how, seed)
            examples = prepare(self.train, targets, how, student.input_px, seed, self.folder)
            train_student(student, examples, how, seed, self.config.device)
            px = student.input_px
            right: dict[str, np.ndarray] = {}
            for part in self.parts:
                a, b = part.pairs.a, part.pairs.b
                low = reference_embeddings(student, student_crops(part.faces, px, px))
                scores = {f"same@{px}": similarity(low[a], low[b], "cosine")}
                # A student of other width than its target has no common space with it.
                if part.name in shared and shared[part.name].shape[1] == low.shape[1]:
                    scores[f"cross@{px}"] = similarity(shared[part.name][a], low[b], "cosine")
                right |= {f"{part.name}/{name}": correct_by_fold(one, part.pairs) for name, one in scores.items()}
        with whole(path) as temporary:
            np.savez(temporary.open("wb"), **right)  # type: ignore[arg-type]

    def _features(self, teacher: str, faces: Faces) -> np.ndarray:
        """Of the faces at full size, (N, D), each teacher once a set of faces."""
        cache = self.folder / f"features-{fingerprint([teacher, faces.keys])}.npy"
        if not cache.is_file():
            with threads(cores()), whole(cache) as temporary:
                np.save(temporary.open("wb"), create_teacher(teacher).embed_faces(faces))
        return np.load(cache, allow_pickle=False)

    def _right(self, row: Row) -> tuple[list[int], dict[str, np.ndarray]]:
        """The seeds that were trained, and the share of them that gets each pair right."""
        seeds = [seed for seed in range(20) if self._path(row, seed).is_file()]
        held = [dict(np.load(self._path(row, seed))) for seed in seeds]
        return seeds, {name: np.mean([one[name] for one in held], axis=0) for name in held[0]} if held else {}

    def entry(self, table: Table, row: Row) -> dict[str, Any]:
        seeds, mine = self._right(row)
        baseline = self._right(next(one for one in table.rows if one.name == table.baseline))[1]
        found: dict[str, Any] = {"row": row.name, "seeds": seeds, "parts": {}}
        for part in self.parts:
            told = found["parts"][part.name] = {}
            for name, values in mine.items():
                if name.startswith(f"{part.name}/"):
                    one = told[name.rpartition("/")[2]] = _interval(values, part)
                    if name in baseline and row.name != table.baseline:
                        one["against_baseline"] = _interval(values - baseline[name], part)
        return found


def _interval(values: np.ndarray, part: Part) -> dict[str, Any]:
    bounds = bootstrap_interval(values, part.pairs, part.faces.identities)
    return {"points": 100 * float(values.mean()), "ci95": [100 * bound for bound in bounds]}


def _markdown(told: dict[str, Any], parts: list[str]) -> str:
    teachers = f"{told['teacher']}{' and ' + told['second'] if told['second'] else ''}"
    lines = [f"### {told['title']}", "",
             f"{told['student']} from {teachers}, {told['samples']:,} degraded faces seen by each student; accuracy in "
             f"%, 95% intervals, differences from `{told['baseline']}` pair by pair, mean over the seeds."]  # fmt: skip
    for part in parts:
        protocols = list(dict.fromkeys(name for row in told["rows"] for name in row["parts"][part]))
        heads = ["row", "seeds", *(f"{name}{more}" for name in protocols for more in ("", ", points from baseline"))]
        lines += ["", f"`{part}`:", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for row in told["rows"]:
            cells = [row["row"], str(len(row["seeds"]))]
            for name in protocols:
                one = row["parts"][part].get(name)
                cells += ["-" if row["seeds"] else "not run", "-"] if one is None else _cells(one)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cells(one: dict[str, Any]) -> list[str]:
    gap = one.get("against_baseline")
    low, high = one["ci95"]
    return [
        f"{one['points']:.2f} [{low:.1f}, {high:.1f}]",
        "-" if gap is None else f"{gap['points']:+.2f} [{gap['ci95'][0]:+.2f}, {gap['ci95'][1]:+.2f}]",
    ]
