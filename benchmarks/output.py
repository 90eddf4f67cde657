"""Where the figures of a command go: the terminal, and the files that were asked for; and how a table writes them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from faces.files import write_json, write_text


def publish(found: dict[str, Any], text: str, json_file: Path | None, markdown_file: Path | None) -> None:
    """Print `text`, Markdown; write `found` and `text` where a file is named."""
    click.echo(text)
    if json_file:
        write_json(json_file, found)
    if markdown_file:
        write_text(markdown_file, text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [_line(heads), "|---" * len(heads) + "|", *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(one: dict[str, Any] | None) -> str:
    """`85.20 [83.9, 86.4]`, of `points` and `ci95`."""
    return "-" if one is None else f"{one['points']:.2f} [{one['ci95'][0]:.1f}, {one['ci95'][1]:.1f}]"


def gap_cell(gap: dict[str, Any] | None) -> str:
    """`+0.41 [-0.30, +1.10]`, of a paired difference."""
    return "-" if gap is None else f"{gap['points']:+.2f} [{gap['ci95'][0]:+.2f}, {gap['ci95'][1]:+.2f}]"
