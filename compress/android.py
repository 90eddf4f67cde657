"""`--android`: the demo app around this run's student. The app's sources are part of a checkout, not of the package."""

import subprocess
import sys
from pathlib import Path

from compress.config import Config
from compress.run import ROOT, Run
from faces.errors import UserError

SCRIPT = ROOT / "android_demo" / "build.py"
APK = "bridgeface-demo.apk"


def check(config: Config) -> None:
    """UserError, before any work, where there is no checkout to build from, or the app's file is not exported."""
    if not SCRIPT.is_file():
        raise UserError(
            "--android builds the app from a checkout of the repository, and this is an installed package: clone it "
            "and run there, or leave out --android"
        )
    if "tflite" not in config.export.formats or "fp32" not in config.export.precisions:
        raise UserError("--android needs student.tflite: put tflite in export.formats and fp32 in export.precisions")


def build(run: Run, script: Path = SCRIPT) -> None:
    """Write the signed app to the run folder; UserError with the builder's own words where it cannot be built."""
    apk = run.path(APK)
    command = [sys.executable, "-m", "android_demo.build", "--run", str(run.folder.resolve()),
               "--out", str(apk.resolve())]  # fmt: skip
    done = subprocess.run(command, cwd=script.parent.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"the app was not built: {last.removeprefix('error: ')}")
    run.say(f"{'android':10} {apk} {apk.stat().st_size / 1e6:.1f} MB, signed with a debug key")
