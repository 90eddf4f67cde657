from importlib.metadata import PackageNotFoundError

import click
import pytest
from click.testing import CliRunner

from faces.cli import run_cli, table_console
from faces.errors import UserError


def _invoke(problem):
    @click.command()
    @click.option("--name", default="x")
    @run_cli
    def command(name):
        """Help stays."""
        if problem:
            raise problem
        click.echo(f"done {name}")

    return CliRunner().invoke(command, ["--name", "y"]), command


def test_a_mistake_is_one_line_and_exit_code_two():
    done, command = _invoke(UserError("unknown thing 'a'.\n  Known: b"))
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", "error: unknown thing 'a'. Known: b\n")
    assert command.help == "Help stays."


def test_a_good_call_passes():
    done, _ = _invoke(None)
    assert (done.exit_code, done.stdout) == (0, "done y\n")


def test_the_file_of_a_system_error_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as problem:
        (tmp_path / "file" / "out").mkdir()
    done, _ = _invoke(problem.value)
    assert done.exit_code == 2
    assert done.stderr == f"error: {tmp_path}/file/out: Not a directory\n"


def test_a_package_that_is_missing_is_named():
    done, _ = _invoke(PackageNotFoundError("bridgeface"))
    assert done.exit_code == 2
    assert done.stderr == "error: the package bridgeface is not installed: pip install -e . in the checkout\n"


@pytest.mark.parametrize("problem", [ZeroDivisionError("ours"), OSError("no file in it")])
def test_our_own_mistakes_keep_their_traceback(problem):
    done, _ = _invoke(problem)
    assert done.exit_code == 1
    assert done.exception is problem


def test_a_pipe_is_wide_and_a_terminal_as_wide_as_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert table_console().width == 200
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert table_console().width == 70
