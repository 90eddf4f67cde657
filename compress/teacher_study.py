"""What the two halves give each other: one student from several teachers, `python -m compress.study teachers`."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from benchmarks.output import cell, gap_cell, table
from compress.adapt import fit_adapter
from compress.config import Config, load_config
from compress.distill import prepare, start_student, weights_file
from compress.idle import refuse_idle
from compress.part_scores import check_models, check_trained, check_unused
from export.kit import student_crops
from export.stage import reference_embeddings
from faces.cli import Output, run_cli, table_console
from faces.dataset import Faces, check_strangers, concatenate
from faces.errors import UserError
from faces.files import fingerprint, sha256, whole, write_json, write_text
from faces.parts import Part, open_parts
from faces.sources import open_faces
from faces.threads import cores, threads
from faces.verification import correct_by_fold, similarity
from students.train import train_student
from teachers.registry import create_single, weight_files


@click.command()
@click.option("--teacher", default="dlib_resnet", show_default=True, metavar="NAME",
              help="Whom the student learns from in the row `none`: one network, as in the pipeline.")  # fmt: skip
@click.option("--tuned", multiple=True, metavar="NAME=FILE",
              help="Another row: the same teacher, fine-tuned; FILE is from teachers.finetune. Repeats.")  # fmt: skip
@click.option("--data", "specs", multiple=True, required=True, metavar="SPEC", help="Faces to learn from. Repeats.")
@click.option("--val", nargs=2, required=True, metavar="SPEC PAIRS.csv", help="Other people, and their fixed pairs.")
@click.option("--student", default="tiny16", show_default=True,
              help="By name, as in the pipeline; tiny32 sees faces of 32 px.")  # fmt: skip
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(2),
              help="How many students of each teacher, from seed 0 on; the table is their mean.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="As in the pipeline, for all rows, e.g. distill.samples=100000. Repeats.")  # fmt: skip
@click.option("--folder", type=Output(folder=True), default=Path("runs/teacher-study"), show_default=True,
              help="Where rows and teachers' features are kept.")  # fmt: skip
@click.option("--out", type=Output(folder=True), default=Path("benchmarks/results"), show_default=True,
              help="Where students-by-teacher.json and .md go.")  # fmt: skip
@run_cli
def teachers(
    teacher: str, tuned: tuple[str, ...], specs: tuple[str, ...], val: tuple[str, str], student: str, seeds: int,
    settings: tuple[str, ...], folder: Path, out: Path,
) -> None:  # fmt: skip
    """Distil the same student from a teacher as it is (`none`) and from fine-tuned ones; mean over seeds.

    Targets come from the full-size face, at its own alpha where the teacher has one. All students see equally many
    degraded faces and start from the same weights. Each (teacher, seed) is kept in FOLDER as it ends. Writes
    OUT/students-by-teacher.json and .md.
    """
    files: dict[str, Path | None] = {"none": None}
    for one in tuned:
        name, equals, file = one.partition("=")
        if not equals or not Path(file).is_file():
            raise UserError(f"--tuned takes NAME=FILE with an existing file, got {one!r}")
        if name in files:
            raise UserError(f"--tuned {one}: there is a row {name!r} already; give each another name")
        files[name] = Path(file)
    options = {"teacher.name": teacher, "distill.student": student}
    config = load_config("quick", None, options, settings)
    check_unused(config, load_config("quick", None, options, ()))
    refuse_idle([config], settings)
    if config.distill.mode in ("c", "dc"):
        raise UserError(
            f"distill.mode={config.distill.mode}: this study's students learn the adapted feature (s or sc)"
        )
    check_models(config, ())
    check_trained(teacher)
    for weights in files.values():
        create_single(teacher, weights)
    with threads(1):
        train = concatenate([open_faces(spec) for spec in specs])
        part = open_parts([val])[0]
        check_strangers(train, part.faces)
        study = _Study(config, train, part, folder)
        work = [(name, seed) for seed in range(seeds) for name in files]
        for name, seed in track(work, "students", console=Console(stderr=True), transient=True):
            study.row(name, files[name], seed)
        entries = [study.entry(name, files[name], seeds) for name in files]
    found = {
        "teacher": teacher, "student": student, "samples": config.distill.samples, "seeds": seeds,
        "data": [Path(spec).name for spec in specs], "val": Path(val[0]).name, "rows": entries,
    }  # fmt: skip
    write_json(out / "students-by-teacher.json", found)
    text = _markdown(found)
    write_text(out / "students-by-teacher.md", text)
    table_console().print(Markdown(text))


class _Study:
    def __init__(self, config: Config, train: Faces, part: Part, folder: Path) -> None:
        self.config, self.train, self.part, self.folder = config, train, part, folder

    def _name(self, name: str, file: Path | None, seed: int) -> str:
        how = self.config
        made = [how.teacher.name, file and sha256(file), str(how.adapt), str(how.distill), seed, self.train.state(),
                self.part.state()]  # fmt: skip
        start = weights_file(how.distill)
        files = [*weight_files(how.teacher.name), *([Path(start)] if start else [])]
        return f"{name}-{seed}-{fingerprint(made, files)}"

    def row(self, name: str, file: Path | None, seed: int) -> dict[str, Any]:
        """Distil and measure unless that was done; which pairs were right is in the .npz beside it."""
        path = self.folder / f"{self._name(name, file, seed)}.json"
        if path.is_file():
            return json.loads(path.read_text())
        how, train, test, pairs = self.config.distill, self.train, self.part.faces, self.part.pairs
        adapter, _ = fit_adapter(self._features(file), train.identities, self.config.adapt, seed)
        targets = adapter.targets(self._features(file))
        student = start_student(how, seed)
        train_student(
            student, prepare(train, targets, how, student.input_px, seed, self.folder), how, seed, self.config.device
        )
        px = student.input_px
        low = reference_embeddings(student, student_crops(test, px, px))
        teacher = create_single(self.config.teacher.name, file)
        with threads(cores()):
            gallery = adapter.targets(teacher.embed_faces(test))
        scores = {
            f"same@{px}": similarity(low[pairs.a], low[pairs.b], "cosine"),
            # The first face by the adapted teacher at full size: the student shares its space.
            f"cross@{px}": similarity(gallery[pairs.a], low[pairs.b], "cosine"),
        }
        right = {protocol: correct_by_fold(values, pairs) for protocol, values in scores.items()}
        with whole(path.with_suffix(".npz")) as temporary:
            np.savez(temporary.open("wb"), **right)  # type: ignore[arg-type]
        found = {protocol: 100 * float(values.mean()) for protocol, values in right.items()}
        write_json(path, found)
        return found

    def _features(self, file: Path | None) -> np.ndarray:
        """The teacher's features of the training faces at full size, (N, D), cached."""
        name = self.config.teacher.name
        key = fingerprint([name, file and sha256(file), self.train.state()], weight_files(name))
        cache = self.folder / f"features-{key}.npy"
        if not cache.is_file():
            with threads(cores()), whole(cache) as temporary:
                np.save(temporary.open("wb"), create_single(name, file).embed_faces(self.train))
        return np.load(cache, allow_pickle=False)

    def _right(self, name: str, file: Path | None, seeds: int) -> dict[str, np.ndarray]:
        """Share of the seeds that get each pair right, by protocol."""
        held = [np.load(self.folder / f"{self._name(name, file, seed)}.npz") for seed in range(seeds)]
        return {protocol: np.mean([one[protocol] for one in held], axis=0) for protocol in held[0].files}

    def entry(self, name: str, file: Path | None, seeds: int) -> dict[str, Any]:
        mine, plain = self._right(name, file, seeds), self._right("none", None, seeds)
        by_seed = [self.row(name, file, seed) for seed in range(seeds)]
        entry: dict[str, Any] = {"teacher": name, "protocols": {}}
        for protocol, values in mine.items():
            told, gap = (self.part.interval(one) for one in (values, values - plain[protocol]))
            entry["protocols"][protocol] = {
                "accuracy": told["points"],
                "ci95": told["ci95"],
                "by_seed": [one[protocol] for one in by_seed],
                "against_none": None if name == "none" else [gap["points"], *gap["ci95"]],
            }
        return entry


def _markdown(found: dict[str, Any]) -> str:
    protocols = list(found["rows"][0]["protocols"])
    heads = ["teacher", *(f"{name}{part}" for name in protocols for part in ("", " by seed", ", points from none"))]
    lines = [
        f"{found['student']} distilled from {found['teacher']}, as it is and fine-tuned; {found['samples']:,} degraded "
        f"faces seen by each student, {found['seeds']} seeds; accuracy in % on the fixed pairs of `{found['val']}`. "
        "`cross`: the first face embedded by the adapted teacher at full size.",
        "",
    ]
    body = []
    for row in found["rows"]:
        cells = [row["teacher"]]
        for name in protocols:
            one = row["protocols"][name]
            gap = one["against_none"]
            cells += [
                cell({"points": one["accuracy"], "ci95": one["ci95"]}),
                " ".join(f"{value:.1f}" for value in one["by_seed"]),
                gap_cell(gap and {"points": gap[0], "ci95": gap[1:]}),
            ]
        body.append(cells)
    return "\n".join([*lines, *table(heads, body)]) + "\n"
