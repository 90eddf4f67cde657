"""README's first command, on as few faces as still tell people apart."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress import results
from export import sidecar

ROOT = Path(__file__).parents[2]
FEWER = ("data.virtual=0", "teacher.views=100", "distill.samples=80000", "evaluate.px=[16]")


@pytest.mark.slow
def test_the_readme_command(tmp_path):
    """`python -m compress.pipeline --teacher swin_b --student tiny16`, but for how many faces the slow teacher reads
    and the student sees: a bootstrap, and said so."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "compress.pipeline", "--teacher", "swin_b", "--student", "tiny16"]
    fewer = [part for setting in FEWER for part in ("--set", setting)]
    done = subprocess.run([*command, "--out", str(out), *fewer], capture_output=True, text=True, cwd=ROOT, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert "BOOTSTRAP" in done.stderr
    assert "BOOTSTRAP" in (out / "run.log").read_text()
    assert json.loads((out / "results.json").read_text())["teacher"]["bootstrap"] is True
    found = results.load(out / "results.json")
    assert any("bootstrap" in warning for warning in found.run.warnings)
    for artifact in found.artifacts:
        assert artifact.parity.passed
        assert sidecar.read(out / artifact.path).teacher.bootstrap
    own = {row.protocol: row for row in found.accuracy if row.model == "student"}
    reference = {row.protocol: row for row in found.reference}
    assert {row.model for row in found.reference} == {"tiny16 from dlib_resnet"}
    assert set(reference) == set(own)
    page = (out / "report.html").read_text()
    assert "bootstrap" in page.lower()
    assert "tiny16 from dlib_resnet" in page
    assert f"{reference['same@16'].accuracy:.1f}" in page
    # Far below what is reached and far above chance, whatever a machine's arithmetic.
    assert own["same@16"].accuracy > 65
    assert reference["same@16"].accuracy > 75
