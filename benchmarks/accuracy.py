"""The papers' tables on data that the user has: `python -m benchmarks.accuracy --help`."""

from pathlib import Path

import click
import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import teacher_plots
from benchmarks.protocol_cli import protocols
from benchmarks.teacher_rows import TABLES, Row
from benchmarks.teacher_runs import Bench
from benchmarks.teacher_tables import markdown, summarise
from faces.cli import SEED, Output, run_cli, table_console
from faces.errors import InUse, UserError
from faces.files import write_json, write_text
from teachers.fabric import check_device
from teachers.finetune import progress_bar


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Accuracy tables: each row is run once, kept, and read from then on."""


@main.command()
@click.option("--data", "specs", multiple=True, required=True, metavar="SPEC", help="Faces to learn from. Repeats.")
@click.option("--val", "vals", multiple=True, required=True, nargs=2, metavar="SPEC PAIRS.csv",
              help="Other people to measure on, and their fixed pairs. Repeats.")  # fmt: skip
@click.option("--unlabelled", multiple=True, metavar="SPEC",
              help="Faces of nobody known, for the rows that learn from them too. Repeats.")  # fmt: skip
@click.option("--table", "tables", multiple=True, type=click.Choice(list(TABLES)), help="Repeats. Default: all.")
@click.option("--row", "rows", multiple=True, metavar="NAME", help="Only rows of this name. Repeats.")
@click.option("--seed", "seeds", multiple=True, type=SEED, help="Only these seeds. Repeats.")
@click.option("--read-only", is_flag=True, help="Run nothing: write the tables of what was run.")
@click.option("--scale", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Times steps.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N; a row says what it ran on.")
@click.option("--folder", type=Output(folder=True), default=Path("runs/teachers"), show_default=True)
@click.option("--out", type=Output(folder=True), default=Path("benchmarks/results/teachers"), show_default=True)
@run_cli
def teachers(
    specs: tuple[str, ...], vals: tuple[tuple[str, str], ...], unlabelled: tuple[str, ...], tables: tuple[str, ...],
    rows: tuple[str, ...], seeds: tuple[int, ...], read_only: bool, scale: float, device: str, folder: Path, out: Path,
) -> None:  # fmt: skip
    """Fine-tune teachers as the papers' tables do and measure them on fixed pairs.

    A row is kept as it ends (its figures in OUT/rows, its scores and its teacher in FOLDER) and read from there next
    time, so a stopped table continues; several processes may work on different rows. A row that was not run says so
    in the table. Writes OUT/TABLE.json, OUT/TABLE.md and the figures.
    """
    check_device(device)
    chosen = {name: TABLES[name] for name in tables or TABLES}
    known = {row.name for table in chosen.values() for row in table.rows}
    if unknown := set(rows) - known:
        raise UserError(f"no row is named {sorted(unknown)[0]!r}. Rows: {'; '.join(sorted(known))}")
    bench = Bench(specs, vals, out / "rows", folder, scale, unlabelled, device)
    due = {
        name: [
            (row, seed)
            for seed in range(max(row.seeds for row in table.rows))
            for row in table.rows
            if seed < row.seeds and (not rows or row.name in rows) and (not seeds or seed in seeds)
            if not read_only and bench.read(row, seed) is None
        ]
        for name, table in chosen.items()
    }
    console = Console(stderr=True)
    # Whatever is wrong with the faces is told before hours of training.
    opened = {part.name: part.faces for part in bench.parts}
    if any(row.method != "none" for work in due.values() for row, _ in work):
        opened["--data"] = bench.train
    if unlabelled and any(_learns_from_anybody(row) for work in due.values() for row, _ in work):
        opened["--data and --unlabelled"] = bench.everyone
    for what, faces in opened.items():
        for line in faces.integrity.told():
            console.print(f"{what}: {line}", highlight=False, markup=False, soft_wrap=True)
    torch.set_num_threads(1)
    for name, table in chosen.items():
        for row, seed in due[name]:
            if _learns_from_anybody(row) and not unlabelled:
                console.print(f"{name}: {row.name}: left out, as it needs --unlabelled FACES", highlight=False)
                continue
            console.print(f"{name}: {row.name}, seed {seed}", highlight=False)
            try:
                with progress_bar(console, bench.settings(row)["steps"]) as advance:
                    bench.run(row, seed, advance)
            except InUse:
                console.print(
                    f"{name}: {row.name}, seed {seed}: left out, another process works on it", highlight=False
                )
        summary = summarise(bench, table)
        text = markdown(summary, [part.name for part in bench.parts])
        write_json(out / f"{name}.json", summary)
        write_text(out / f"{name}.md", text)
        teacher_plots.draw(bench, name, table, out)
        table_console().print(Markdown(text))


def _learns_from_anybody(row: Row) -> bool:
    return bool(row.changes.get("unlabelled"))


main.add_command(protocols)

if __name__ == "__main__":
    main()
