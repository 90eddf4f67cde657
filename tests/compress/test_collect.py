"""What whoever reads the report must know before its figures."""

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
