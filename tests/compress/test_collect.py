"""What whoever reads the report must know before its figures."""

import os
import shlex
import sys

import pytest

from compress import collect
from compress.config import load_config


def warnings(leaks=0, bootstrap=False, **options):
    facts = {
        "teacher": {"name": "swin_b", "bootstrap": bootstrap},
        "data": {"split": {"leaks": leaks}},
        "export": {"artifacts": []},
    }
    return collect._warnings(facts, load_config("quick", None, options, []))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"leaks": 3}, "3 shared people or near copies, accepted by data.allow_leaks"),
        ({"bootstrap": True}, "say nothing about a trained swin_b"),
        ({"distill.weights": "zoo"}, "started from trained weights (zoo)"),
    ],
)
def test_what_spoils_a_figure_is_told(given, words):
    assert warnings() == []
    (told,) = warnings(**given)
    assert words in told


def test_a_name_that_is_no_utf8_goes_into_the_results():
    name = os.fsdecode(b"p\xe4/1.jpg")
    found = collect.printable({"landmark_misses": [name, "a"], name: (1, None)})
    assert found == {"landmark_misses": ["p?/1.jpg", "a"], "p?/1.jpg": [1, None]}


@pytest.mark.parametrize(
    "more",
    [["--stages", "export,report"], ["--stages=report"], ["--dry-run"], ["--fresh"], ["--resume", "--stages", "data"]],
)
def test_the_command_told_is_that_of_the_whole_run(more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before, behind = ["pipeline", "--teacher", "dlib_resnet"], ["--set", "a=b  c", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", [*before, *more, *behind])
    assert shlex.split(collect._command()) == [*before, *behind]
