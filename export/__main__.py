"""`python -m export RUN`, `python -m export verify`, `python -m export embed`, `python -m export vectors`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich import box
from rich.console import Console
from rich.table import Table

from export.embed import embed_command
from export.targets import FORMATS, PRECISIONS
from export.vectors import vectors_command
from export.verify import verify_command
from faces.cli import Output, run_cli, table_console
from faces.errors import UserError
from faces.files import lock


class _RunFirst(click.Group):
    """What is no command's name is a run folder: `python -m export runs/x` is `python -m export run runs/x`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunFirst, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Turn a run's student and teacher into proved artifacts, and use these.

    \b
      python -m export runs/x --format onnx,tflite,tensorrt-rtx --precision fp32,fp16,int8
      python -m export runs/x --export-teacher --alpha gallery --format onnx --precision fp32,fp16
      python -m export verify runs/x/student.onnx a.jpg b.jpg
      python -m export embed runs/x/student-int8.tflite photos/ --out photos.npz
      python -m export vectors runs/x/student.tflite --out vectors.json
    """


@main.command("run")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--format", "formats", default="onnx,tflite", show_default=True, metavar="LIST",
              help=f"Of {', '.join(FORMATS)}.")  # fmt: skip
@click.option("--precision", "precisions", default="fp32", show_default=True, metavar="LIST",
              help=f"Of {', '.join(PRECISIONS)}.")  # fmt: skip
@click.option("--student/--no-student", default=True, help="Export the student (default).")
@click.option("--mirror", is_flag=True,
              help="Also student-mirror.*: the mirror image's embedding is added, for twice the work.")  # fmt: skip
@click.option("--export-teacher", is_flag=True, help="Export the teacher too. What it cannot be is a row, no failure.")
@click.option("--alpha", default="mean", show_default=True, metavar="gallery|probe|mean|input|VALUE",
              help="Alpha at which a teacher's twin adapters are merged; `input`: it stays one.")  # fmt: skip
@click.option("--batch", default="1,32,256", show_default=True, metavar="MIN,OPT,MAX", help="Batches of an engine.")
@click.option("--capability", metavar="LIST",
              help="GPUs that a tensorrt-rtx engine is built for, e.g. SM86,SM89.")  # fmt: skip
@click.option("--uint8-input", is_flag=True, help="ONNX takes bytes, (N, p, p, 3), and divides them itself.")
@click.option("--normalise", is_flag=True, help="Embeddings leave ONNX with length 1.")
@click.option("--out", type=Output(folder=True), help="Another folder for the files. Default: the run's.")
@click.option("--allow-parity-failure", is_flag=True, help="Keep files that miss their tolerance.")
@run_cli
def run(
    folder: Path,
    formats: str,
    precisions: str,
    student: bool,
    mirror: bool,
    export_teacher: bool,
    alpha: str,
    batch: str,
    capability: str | None,
    uint8_input: bool,
    normalise: bool,
    out: Path | None,
    allow_parity_failure: bool,
) -> None:
    """Export the models of a run folder, prove each file on real faces, and print the table.

    A file that cannot be made or differs from its model is a line of the table, and of the student's an error (2).
    """
    # Here, as `verify` and `embed` need no torch.
    from export.kit import Bench, read_kit
    from export.merge import check_policy
    from export.stage import How, export_model
    from export.tensorrt import check_capabilities

    if not (student or mirror or export_teacher):
        raise UserError("nothing to export: leave out --no-student, or give --mirror or --export-teacher")
    check_policy(alpha)
    how: dict[str, Any] = {
        "formats": _list("--format", formats),
        "precisions": _list("--precision", precisions),
        "allow_failure": allow_parity_failure,
        "uint8_input": uint8_input,
        "normalise": normalise,
        "batch": _batch(batch),
    }
    _refuse_idle(how["formats"], export_teacher)
    if capability is not None:
        how["capabilities"] = _list("--capability", capability)
        check_capabilities(how["capabilities"])
    bench = Bench(folder, read_kit(folder))
    console = Console(stderr=True)
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    rows, misses = [], []
    with lock(out), console.status("") as status:

        def say(what: str) -> None:
            status.update(f"exporting {what}")

        subjects = (
            (student, bench.student),
            (mirror, lambda: bench.student(mirror=True)),
            (export_teacher, lambda: bench.teacher(alpha)),
        )
        for wanted, make in subjects:
            if wanted:
                status.update("preparing faces and the model")
                subject = make()
                settings = How(**how, report_misses=True, progress=say, tick=say)
                found, missed = export_model(subject, out, settings)
                rows += found
                misses += missed
                if subject.card.alpha is not None:
                    _print_price(subject.card.alpha)
                elif subject.name == "teacher" and _given("--alpha"):
                    click.echo(f"note: --alpha {alpha} changes nothing: {subject.card.model} has no twin adapters")
    print_table(rows, misses)
    if out.resolve() == folder.resolve() and (replaced := _replaced(folder, rows)):
        click.echo(
            f"note: results.json, report.html and MODEL_CARD.md tell of other files than these: {', '.join(replaced)}; "
            "--out leaves the run's files as they are"
        )
    if missed := [row for row in misses if row["path"].startswith("student")]:
        kept = "; --allow-parity-failure keeps a file that differs" if any(row["differs"] for row in missed) else ""
        raise UserError(f"{', '.join(row['path'] for row in missed)}: missed, as the table says{kept}")


def print_table(rows: list[dict[str, Any]], misses: list[dict[str, Any]]) -> None:
    """One row a file: format, precision, bytes, largest difference, least cosine, accuracy, verdict."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("file", "precision", "bytes", "max abs", "worst cosine", "accuracy, %", "build", "verdict"):
        right = heading in ("bytes", "max abs", "worst cosine")
        table.add_column(heading, justify="right" if right else "left", overflow="fold", no_wrap=heading == "file")
    for row in rows:
        parity = row["parity"]
        verdict = {True: "passed", False: "FAILED, kept on request", None: "not run"}[parity["passed"]]
        gate = parity["accuracy"]
        accuracy = ""
        if gate is not None:
            accuracy = f"{gate['accuracy']:.1f} [{gate['ci95'][0]:.1f}, {gate['ci95'][1]:.1f}] {gate['protocol']}"
        numbers = ["", ""] if parity["max_abs"] is None else [f"{parity['max_abs']:.1e}", f"{parity['cosine_min']:.7f}"]
        table.add_row(
            row["path"], row["precision"], f"{row['bytes']:,}", *numbers, accuracy, f"{row['seconds']:.1f} s", verdict
        )
    for row in misses:
        table.add_row(row["path"], row["precision"], "", "", "", "", "", f"missed: {row['reason']}")
    console = table_console()
    console.print(table)
    for reason in dict.fromkeys(
        row["parity"]["reason"].split(";")[0] for row in rows if row["parity"]["passed"] is None
    ):
        console.print(reason, soft_wrap=True, highlight=False)
    for row in rows:
        if row.get("trtexec"):
            console.print(f"{row['path']} on your own GPU or Jetson: {row['trtexec']}", soft_wrap=True, highlight=False)


def _print_price(alpha: Any) -> None:
    if alpha.value is None:
        click.echo("alpha stays an input of the graph: exact")
        return
    click.echo(f"adapters merged at alpha {alpha.value:g} ({alpha.source}); against each image's own alpha:")
    for one in alpha.price:
        where = "full size" if one.px is None else f"{one.px} px"
        told = f"  {where:>9}: cosine at least {one.cosine_least:.4f}, {one.cosine_mean:.4f} on average"
        if one.accuracy is not None:
            told += (
                f"; accuracy {one.accuracy:.1f}% for {one.accuracy_per_image:.1f}% "
                f"[{one.ci95[0]:+.1f}, {one.ci95[1]:+.1f}], {one.pairs} pairs"
            )
        click.echo(told)


def _replaced(folder: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The files of which the run's results name another hash."""
    try:
        told = {one["path"]: one["sha256"] for one in json.loads((folder / "results.json").read_bytes())["artifacts"]}
    except (OSError, ValueError, LookupError, TypeError):
        # A run that was not reported, or not by this version, tells nothing that could be wrong.
        return []
    return [row["path"] for row in rows if told.get(row["path"], row["sha256"]) != row["sha256"]]


def _refuse_idle(formats: Sequence[str], export_teacher: bool) -> None:
    """UserError for an option that changes nothing without another: who gives it expects that it does."""
    not_tflite = any(one != "tflite" for one in formats)
    for option, works, without in (
        ("--alpha", export_teacher, "--export-teacher"),
        ("--capability", "tensorrt-rtx" in formats, "--format tensorrt-rtx"),
        ("--uint8-input", not_tflite, "another --format than tflite"),
        ("--normalise", not_tflite, "another --format than tflite"),
        ("--batch", not_tflite, "another --format than tflite"),
    ):
        if _given(option) and not works:
            raise UserError(f"{option} changes nothing without {without}: leave it out, or give that too")


def _given(option: str) -> bool:
    name = option.removeprefix("--").replace("-", "_")
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _list(option: str, text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UserError(f"{option} {text!r} names nothing: leave it out, or see --help")
    return parts


def _batch(text: str) -> tuple[int, int, int]:
    parts = _list("--batch", text)
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--batch takes MIN,OPT,MAX such as 1,32,256, got {text!r}")
    least, usual, most = (int(part) for part in parts)
    if not 1 <= least <= usual <= most < 2**31:
        raise UserError(f"--batch {text}: it must rise from at least 1 and stay below {2**31:,}")
    return least, usual, most


main.add_command(verify_command, "verify")
main.add_command(embed_command, "embed")
main.add_command(vectors_command, "vectors")

if __name__ == "__main__":
    main()
