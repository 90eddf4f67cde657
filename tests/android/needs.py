"""What the tests of the demo need and do not fetch themselves."""

import shutil
from pathlib import Path

import pytest

from android_demo import pins

JAVA = Path(__file__).parent / "java"


def need(*names: str, tools: tuple[str, ...] = ()) -> None:
    """Skip where a pinned package was not fetched or a program is missing: tests fetch nothing themselves."""
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if missing := [name for name in names if not (pins.CACHE / pins.PINS[name].file).is_file()]:
        pytest.skip(f"not fetched: {', '.join(missing)}; make -C android_demo fetch")
