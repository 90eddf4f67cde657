"""Publish a run's student with the package: `python -m compress.zoo RUN`."""

import json
import re
import shutil
from pathlib import Path

import click

from compress.distill import STUDENT
from compress.results import Results, load
from faces.cli import run_cli
from faces.errors import UserError
from faces.files import sha256, whole, write_text
from faces.sources.reader import USER_DATA
from students.registry import ZOO, create_student, load_weights


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data-licence", metavar="TEXT", help="Terms of the data, where the run could not know them.")
@run_cli
def main(folder: Path, data_licence: str | None) -> None:
    """Copy the student of an ended RUN, and its model card, to students/zoo/.

    The card tells the command and the data by file name and SHA-256, never where they lay.
    """
    run = load(folder / "results.json")
    weights, card = folder / STUDENT, folder / "MODEL_CARD.md"
    if not (weights.is_file() and card.is_file()):
        raise UserError(f"{folder} has no {STUDENT} or no model card: run all stages of compress.pipeline first")
    ended = [_ended(folder, stage) for stage in ("distill", "report")]
    if ended[1] < ended[0]:
        raise UserError(f"the student of {folder} is newer than its report: run compress.pipeline's other stages first")
    if run.student.mode == "none":
        raise UserError(f"the student of {folder} was not trained there (distill.samples=0): nothing to publish")
    name = run.student.name
    load_weights(create_student(name), weights)
    ZOO.mkdir(exist_ok=True)
    files = data_files(run)
    with whole(ZOO / f"{name}.safetensors") as temporary:
        shutil.copyfile(weights, temporary)
    write_text(
        ZOO / f"{name}.md", published(card.read_text().replace(str(folder.resolve()), folder.name), files, data_licence)
    )
    click.echo(f"{ZOO / name}.safetensors and its card")


def _ended(folder: Path, stage: str) -> str:
    try:
        return json.loads((folder / f"stages/{stage}.json").read_text())["ended"]
    except (OSError, ValueError, LookupError):
        raise UserError(f"{folder} does not tell when its stage {stage} ended: run compress.pipeline there") from None


def data_files(run: Results) -> list[Path]:
    """The files and folders that the run learnt from, started from and was tested on, those that are still there; of a
    folder also its shards."""
    config = run.run.config if run.run is not None else {}
    data, weights = config.get("data", {}), [config.get(part, {}).get("weights") for part in ("teacher", "distill")]
    named = [*data.get("public", ()), data.get("val"), data.get("pairs"), *weights]
    found = [Path(one) for one in named if one is not None and Path(one).name and Path(one).exists()]
    return [file for one in found for file in (one, *(sorted(one.glob("*.tar")) if one.is_dir() else ()))]


def published(card: str, files: list[Path], licence: str | None = None) -> str:
    """The card with names in place of paths, the data's licence, and a section with each file's hash."""
    if licence is not None:
        card = card.replace(USER_DATA, licence)
    # The longest first: one path may begin with another.
    for file in sorted(files, key=lambda one: -len(str(one))):
        for text in {str(file), re.sub(r"([\\`*_\[\]<>|])", r"\\\1", str(file))}:
            card = card.replace(text, file.name)
    files = [file for file in files if file.is_file()]
    rows = [f"| {file.name} | {file.stat().st_size:,} | `{sha256(file)}` |" for file in files]
    table = "\n".join(["", "## Files of the data", "", "| File | Bytes | SHA-256 |", "|---|--:|---|", *rows, ""])
    return card.rstrip("\n") + "\n" + table


if __name__ == "__main__":
    main()
