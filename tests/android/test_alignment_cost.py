"""What the alignment costs, on the ORL faces."""

import csv
import re

from click.testing import CliRunner

from android_demo import alignment_cost
from faces.sources import open_faces
from faces.verification import make_pairs


def test_the_table_by_hand(artifacts, finder_file, tmp_path):
    faces = open_faces("orl")
    pairs = make_pairs(faces.identities, 0, most=200)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = zip(pairs.a, pairs.b, pairs.same.astype(int), pairs.fold, strict=True)
        csv.writer(file).writerows(
            [
                ("key_a", "key_b", "same", "fold"),
                *((faces.keys[a], faces.keys[b], same, fold) for a, b, same, fold in rows),
            ]
        )
    command = [str(artifacts["fp32"]), "--data", "orl", "--pairs", str(tmp_path / "pairs.csv")]
    done = CliRunner().invoke(alignment_cost.main, command)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{len(faces)} faces, 400 pairs; the finder missed ")
    found = re.findall(r"^\| (.+?) \| ([\d.]+) \[([\d.]+), ([\d.]+)\] \| (?:([-+][\d.]+) .*|-) \|$", done.output, re.M)
    assert len(found) == 6
    five = float(found[0][1])
    assert found[0][0] == "five points"
    assert found[0][4] == ""
    for _, accuracy, low, high, gap in found:
        assert float(low) <= float(accuracy) + 0.06
        assert float(accuracy) <= float(high) + 0.06
        assert abs(float(gap or 0) - (float(accuracy) - five)) < 0.011
    rates = {name: float(accuracy) for name, accuracy, *_ in found}
    off = [rates[name] for name in rates if "off by" in name]
    assert five > 90
    assert off[1] < off[0] <= five
