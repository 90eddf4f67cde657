"""What all commands share: a user's mistake is one line on stderr and exit code 2, never a traceback; and the width of
their tables."""

import functools
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import click
from rich.console import Console

from faces.errors import UserError


class _Failure(click.ClickException):
    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {' '.join(self.format_message().split())}", err=True)


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
            raise _Failure(f"{problem.filename}: {problem.strerror}") from problem

    return wrapped


def table_console() -> Console:
    """Where tables are printed: the terminal at its own width. A file or a pipe has none, and 80 columns would cut the
    words: it gets 200."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
