"""What all commands share: a user's mistake is one line on stderr and exit code 2, never a traceback; the types of
their options; and the width of their tables."""

import functools
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from faces.errors import UserError

SEED = click.IntRange(0, 2**32 - 1)
"""What every generator of random numbers takes."""


class _Failure(click.ClickException):
    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {' '.join(self.format_message().split())}", err=True)


class Output(click.Path):
    """The type of an option that names what a command will write: a place where it cannot be, or another suffix than
    `suffixes`, is told before the work that it is to hold."""

    def __init__(self, *suffixes: str, folder: bool = False) -> None:
        super().__init__(path_type=Path)
        self.suffixes, self.folder = suffixes, folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        option, path = param.opts[0] if param else "output", super().convert(value, param, ctx)
        assert isinstance(path, Path)
        within = path if self.folder else path.parent
        while not within.exists() and within != within.parent:
            within = within.parent
        if not str(value):
            raise _Failure(f"{option} is empty: give a path")
        if not self.folder and path.is_dir():
            raise _Failure(f"{option} {path} is a folder: give a file")
        if self.suffixes and path.suffix not in self.suffixes:
            proposed = path.with_suffix(self.suffixes[0])
            raise _Failure(f"{option} is written as {' or '.join(self.suffixes)}; give {option} {proposed}")
        if not within.is_dir():
            raise _Failure(f"cannot write to {path}, as {within} is a file: choose another {option}")
        if not os.access(within, os.W_OK | os.X_OK):
            raise _Failure(f"cannot write to {path}: no permission in {within}; choose another {option}")
        return path


def run_cli(function: Callable[..., Any]) -> Callable[..., Any]:
    """Innermost decorator of a click command's function: a UserError becomes one line and exit code 2.

    So do operating-system errors that name a file (permission, no such folder, full disk) and a package that is
    not installed, as where a checkout is run as it is; all other exceptions are ours and keep their traceback.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except UserError as mistake:
            raise _Failure(str(mistake)) from mistake
        except PackageNotFoundError as missing:
            raise _Failure(
                f"the package {missing.name} is not installed: pip install -e . in the checkout"
            ) from missing
        except OSError as problem:
            if problem.filename is None:
                raise
            reason = problem.strerror or f"{problem.args[0]} (is the disk full?)"
            raise _Failure(f"{problem.filename}: {reason}") from problem

    return wrapped


def table_console() -> Console:
    """Where tables are printed: the terminal at its own width. A file or a pipe has none, and 80 columns would cut the
    words: it gets 200."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
