"""Low-resolution faces enlarged in front of the teacher, against the student: bridge distillation, Table III."""

import dataclasses
from pathlib import Path
from typing import Any

import click
from rich.markdown import Markdown

from benchmarks.output import table
from compress.espcn import Recipe, largest_scale
from compress.hallucination_rows import BASELINE, FULL, STUDENT, Student, Study
from compress.part_scores import METRICS, check_trained, two_cells
from faces.cli import SEED, Output, run_cli, table_console
from faces.dataset import check_strangers, concatenate
from faces.errors import UserError
from faces.files import sha256, write_json, write_text
from faces.parts import open_parts
from faces.sources import open_faces
from students.registry import create_student, load_weights, zoo_file
from teachers.registry import create_single


@click.command()
@click.option("--teacher", default="dlib_resnet", show_default=True, help="One network, as in the pipeline.")
@click.option("--student", "students", multiple=True, default=("tiny16",), show_default=True, metavar="NAME[=FILE]",
              help="Compared at its own input size: the package's trained weights, or a safetensors file. "
              "Repeats.")  # fmt: skip
@click.option("--px", "sizes", multiple=True, type=click.IntRange(8), default=(16,), show_default=True,
              help="Size of the faces. Repeats.")  # fmt: skip
@click.option("--data", "specs", multiple=True, required=True, metavar="SPEC",
              help="Faces that ESPCN learns to enlarge; labels are not used. Repeats.")  # fmt: skip
@click.option("--val", "vals", nargs=2, multiple=True, required=True, metavar="SPEC PAIRS.csv",
              help="Other people to measure on, and their fixed pairs. Repeats.")  # fmt: skip
@click.option("--steps", default=Recipe.steps, show_default=True, type=click.IntRange(1),
              help="Training steps of ESPCN; its CPU minutes are told in the table.")  # fmt: skip
@click.option("--batch", default=Recipe.batch, show_default=True, type=click.IntRange(1), help="Faces a step.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of ESPCN's training.")
@click.option("--folder", type=Output(folder=True), default=Path("runs/hallucination"), show_default=True,
              help="Where ESPCN's weights and every finished row are kept.")  # fmt: skip
@click.option("--out", type=Output(folder=True), default=Path("benchmarks/results/students"), show_default=True,
              help="Where hallucination.json and hallucination.md go.")  # fmt: skip
@run_cli
def hallucination(
    teacher: str, students: tuple[str, ...], sizes: tuple[int, ...], specs: tuple[str, ...],
    vals: tuple[tuple[str, str], ...], steps: int, batch: int, seed: int, folder: Path, out: Path,
) -> None:  # fmt: skip
    """Ask whether a teacher that sees enlarged faces beats the student that sees the small ones.

    Both faces of each fixed pair are reduced to --px. Rows: the teacher at full size (what is lost), on faces enlarged
    by bilinear and bicubic interpolation and by ESPCN (a small super-resolution network, trained here on --data), and
    the student on the small faces as they are. Accuracy and TPR at FPR 10% with intervals, the paired difference from
    bilinear, multiply-accumulates of a face, and how many faces one core takes in the same time. Table III of bridge
    distillation.

    \b
    python -m compress.study hallucination --data TRAIN.tar --val VAL.tar PAIRS.csv
    python -m compress.study hallucination --data TRAIN.tar --val VAL.tar PAIRS.csv \\
        --px 16 --px 32 --student tiny16 --student tiny32=student.safetensors

    A stopped command continues where it was, ESPCN's training included.
    """
    net = create_single(teacher)
    check_trained(teacher)
    for px in sizes:
        largest_scale(px, net.input_px)  # A size that cannot be enlarged is told before any work.
    by_px = _open_students(students, sizes)
    parts = open_parts(vals)
    train = concatenate([open_faces(spec) for spec in specs])
    check_strangers(train, *(part.faces for part in parts))
    study = Study(net, by_px, train, parts, Recipe(steps=steps, batch=batch), seed, folder)
    found = [study.table_of(px) for px in dict.fromkeys(sizes)]
    told = {
        "title": "Enlarging faces in front of the teacher (bridge distillation, Table III)", "teacher": teacher,
        "students": list(students), "baseline": BASELINE, "data": [Path(spec).name for spec in specs],
        "train_faces": len(train), "espcn": dataclasses.asdict(study.how), "seed": seed, "sizes": found,
    }  # fmt: skip
    write_json(out / "hallucination.json", told)
    text = _markdown(told, [part.name for part in parts])
    write_text(out / "hallucination.md", text)
    table_console().print(Markdown(text))


def _open_students(given: tuple[str, ...], sizes: tuple[int, ...]) -> dict[int, Student]:
    """Students by input size; UserError for two of one size, or one whose size is not asked for."""
    found: dict[int, Student] = {}
    for one in given:
        name, _, file = one.partition("=")
        weights = Path(file) if file else zoo_file(name)
        model = load_weights(create_student(name), weights).eval()
        px = model.input_px
        if px in found or px not in sizes:
            why = "a second one of that size" if px in found else f"no --px {px} was given"
            raise UserError(f"--student {one} sees faces of {px} px: {why}")
        found[px] = Student(f"{STUDENT} {name}", model, sha256(weights))
    return found


def _markdown(told: dict[str, Any], parts: list[str]) -> str:
    how = told["espcn"]
    lines = [f"### {told['title']}"]
    for one in told["sizes"]:
        px, size = one["px"], one["px"] * one["scale"]
        minutes = one["espcn_cpu_minutes"]
        lines += [
            "",
            f"Both faces of each pair at {px} px (same@{px}), those of `{FULL}` at full size; each network on its own "
            f"crop; teacher {told['teacher']}, "
            f"ESPCN {px} to {size} px trained for {minutes:.1f} CPU minutes ({how['steps']:,} steps of "
            f"{how['batch']} of {told['train_faces']:,} faces). Accuracy and TPR in %, 95% intervals, differences from "
            f"`{told['baseline']}` pair by pair; PSNR at {size} px.",
        ]
        metrics = [
            metric for metric in METRICS if any(metric in row["parts"].get(p, {}) for row in one["rows"] for p in parts)
        ]
        for part in parts:
            heads = [
                "row",
                *(f"{text}" for m in metrics for text in (_head(m, px), "points from bilinear")),
                "PSNR, dB",
            ]
            body = []
            for row in one["rows"]:
                mine = row["parts"].get(part, {})
                cells = [text for m in metrics for text in two_cells(mine.get(m))]
                noise = mine.get("psnr_db")
                body.append([row["row"], *cells, "-" if noise is None else f"{noise:.2f}"])
            lines += ["", f"`{part}`:", "", *table(heads, body)]
        lines += [
            "",
            f"Cost of a face, PyTorch on one core, {one['timed_batch']} faces at a time, all rows in one run; "
            "enlarging is included, but for interpolation in the multiply-accumulates:",
            "",
            *_costs(one["rows"]),
        ]
    return "\n".join(lines) + "\n"


def _head(metric: str, px: int) -> str:
    return f"same@{px}{METRICS[metric]}"


def _costs(rows: list[dict[str, Any]]) -> list[str]:
    student = next((row["faces_per_cpu_second"] for row in rows if row["row"].startswith(STUDENT)), None)
    body = []
    for row in rows:
        if rate := row["faces_per_cpu_second"]:
            ratio = "-" if student is None else f"{student / rate:,.1f}"
            body.append([row["row"], f"{row['macs'] / 1e6:,.2f}", f"{rate:,.0f}", ratio])
    return table(["row", "multiply-accumulates, million", "faces per CPU second", "student is faster by"], body)
