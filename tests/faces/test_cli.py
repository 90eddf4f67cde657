import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from faces.cli import Output, run_cli, table_console
from faces.errors import UserError
from faces.files import whole


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


def test_a_write_that_fell_short_says_so(tmp_path):
    """numpy's errors of a full disk have neither a number nor a file."""
    with pytest.raises(OSError, match="Errno None") as problem, whole(tmp_path / "features.npy"):
        raise OSError("900 requested and 4 written")
    done, _ = _invoke(problem.value)
    assert done.stderr == f"error: {tmp_path / 'features.npy'}: 900 requested and 4 written (is the disk full?)\n"


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


@pytest.mark.parametrize(
    ("type_", "given", "said"),
    [
        (Output(), "", "--out is empty"),
        (Output(folder=True), "", "--out is empty"),
        (Output(), "file/new/a.json", "as file is a file"),
        (Output(folder=True), "file", "as file is a file"),
        (Output(folder=True), "file/new", "as file is a file"),
        (Output(), "folder", "--out folder is a folder"),
        (Output(".svg", ".png"), "a.xyz", "--out is written as .svg or .png; give --out a.svg"),
        pytest.param(Output(), "closed/a", "no permission in closed",
                     marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")),
    ],
)  # fmt: skip
def test_a_bad_output_is_told_before_the_work(tmp_path, monkeypatch, type_, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "closed").mkdir(mode=0o500)
    done = CliRunner().invoke(_writer(type_), ["--out", given])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("type_", "given"),
    [(Output(".json"), "new/deep/a.json"), (Output(), "file"), (Output(folder=True), "folder"),
     (Output(folder=True), "new")],
)  # fmt: skip
def test_a_good_output_is_taken_as_it_is(tmp_path, monkeypatch, type_, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    done = CliRunner().invoke(_writer(type_), ["--out", given])
    assert (done.exit_code, done.stdout) == (0, f"{Path(given)!r}\n")
    assert len(list(tmp_path.iterdir())) == 2


def _writer(type_):
    @click.command()
    @click.option("--out", type=type_)
    def command(out):
        click.echo(repr(out))

    return command


def test_a_pipe_is_wide_and_a_terminal_as_wide_as_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert table_console().width == 200
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert table_console().width == 70
