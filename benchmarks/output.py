"""Where the figures of a command go: the terminal, and the files that were asked for."""

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
