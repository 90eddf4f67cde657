"""How fast on a phone: `python -m benchmarks.mobile phone FILE...`, or, with no phone, `... qemu FILE...`."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks import phone as phones
from benchmarks import qemu as emulated
from benchmarks.paper import FACES_PER_SECOND
from benchmarks.sysroot import CPUS
from faces.cli import Output, run_cli
from faces.files import write_json

FOLDER = Path.home() / ".cache" / "bridgeface" / "arm"
_FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
_JSON = click.option("--json", "json_file", type=Output(), help="Write the rows here.")
_FOLDER = click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True,
                       help="Where the ARM files are kept.")  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Speed on ARM: measured on a phone, or instructions counted under an emulator."""


@main.command()
@_FILES
@_JSON
@_FOLDER
@click.option("--serial", help="Which of several phones (see `adb devices`).")
@click.option("--runs", type=click.IntRange(100), default=5000, show_default=True)
@click.option("--xnnpack/--no-xnnpack", default=True, show_default=True)
@run_cli
def phone(
    files: tuple[Path, ...], json_file: Path | None, folder: Path, serial: str | None, runs: int, xnnpack: bool
) -> None:
    """Faces per second of TFLite FILES on a phone over adb, one big core, one face a call, hot loop."""
    device = phones.Phone(serial)
    program, library = phones.build(folder / "phone")
    rows = [device.measure(file, program, library, runs, xnnpack) for file in files]
    click.echo("| phone | artifact | core | faces/s | p50 / p95 ms | battery, C | paper, Snapdragon 821 |")
    click.echo("|---|---|--:|--:|--:|--:|--:|")
    for row in rows:
        paper = FACES_PER_SECOND["Snapdragon 821"].get(row["input_px"], "-")
        heat = " to ".join("?" if one is None else f"{one:.1f}" for one in row["celsius"])
        click.echo(
            f"| {row['device']['model']} | {row['artifact']} | {row['core']} | {row['faces_per_second']:,.0f} | "
            f"{row['p50_ms']:.3f} / {row['p95_ms']:.3f} | {heat} | {paper} |"
        )
    _write(json_file, rows)


@main.command()
@_FILES
@_JSON
@_FOLDER
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(list(CPUS)), default=tuple(CPUS), show_default=True)
@run_cli
def qemu(files: tuple[Path, ...], json_file: Path | None, folder: Path, cpus: tuple[str, ...]) -> None:
    """Instructions per face of TFLite FILES in LiteRT's aarch64 build under qemu-aarch64. Needs Debian or Ubuntu, a C
    compiler and qemu-user; fetches an ARM Python with apt-get and pip into FOLDER, installs nothing.

    Faces per second are an ESTIMATE from a clock and instructions a cycle that are assumed, not measured.
    """
    rows = [emulated.measure(file, cpu, folder) for file in files for cpu in cpus]
    click.echo(
        "| artifact | core | instructions a face | two runs differ by | output against this machine | "
        "ESTIMATE, faces/s | assumed |"
    )
    click.echo("|---|---|--:|--:|---|--:|---|")
    for row in rows:
        guess = row["estimate"]
        apart = f"{row['max_abs_to_this_machine']:.1e}"
        apart += f", {row['steps_apart']:g} steps" if "steps_apart" in row else ""
        click.echo(
            f"| {row['artifact']} | {row['cpu']} | {row['instructions']:,.0f} | {row['repeat_apart']:.4%} | "
            f"{apart}, {'agrees' if row['agrees'] else 'DIFFERS'} | {guess['faces_per_second']:,.0f} | "
            f"{guess['assumed_ghz']} GHz, {guess['assumed_ipc']} instructions a cycle |"
        )
    _write(json_file, rows)


def _write(json_file: Path | None, rows: list[dict[str, Any]]) -> None:
    if json_file:
        command = shlex.join(["python", "-m", "benchmarks.mobile", *sys.argv[1:]])
        write_json(json_file, {"mobile": rows, "command": command})


if __name__ == "__main__":
    main()
