"""What the intervals of accuracies are worth, on made people."""

import json

import numpy as np
from click.testing import CliRunner

from benchmarks import coverage


def test_what_is_held_by_hand():
    drawn = [dict.fromkeys(("accuracy", "paired"), (value, value - 1, value + up))
             for value, up in ((10, 1), (10, 5), (14, 1), (6, 5))]  # fmt: skip
    # The mean is 10: 14 is too high by more than 1, and 6 + 5 reaches it.
    assert coverage._held(drawn) == {"accuracy": 10, "accuracy_held": 75, "paired": 10, "paired_held": 75}


def test_the_table_and_the_file_say_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "PEOPLE", ((10, 10),))
    command = ["--sets", "20", "--json", str(tmp_path / "c.json")]
    done = CliRunner().invoke(coverage.main, command)
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "c.json").read_text())["coverage"]
    assert (row["people"], row["sets"]) == (10, 20)
    assert 80 < row["accuracy"] < 97
    assert -5 < row["paired"] < 0
    held = f"| 10 | 10 | {row['accuracy']:.1f} | {row['accuracy_held']:.0f} | {row['paired']:+.1f} | "
    assert held in done.stdout
    drawn = [coverage._drawn(10, 10, seed) for seed in range(20)]
    for name in ("accuracy", "paired", "tar", "eer", "rank1"):
        assert np.isclose(row[name], np.mean([one[name][0] for one in drawn]))
        assert all(one[name][1] <= one[name][0] <= one[name][2] for one in drawn)
        assert 50 <= row[f"{name}_held"] <= 100
