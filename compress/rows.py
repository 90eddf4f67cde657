"""The rows of a study as they are kept: one file each, named by what it is made of."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from faces.files import fingerprint, whole


def row_file(folder: Path, made: Any, *words: object, suffix: str = ".npz", files: Iterable[str | Path] = ()) -> Path:
    """`folder`/rows/WORD-...-FINGERPRINT.npz; made: all that the row depends on, anything that JSON can hold, but for
    the bytes of `files`. Where one of these is not there, no row is."""
    name = "-".join(map(str, words)).replace(" ", "-").replace(",", "")
    return folder / "rows" / f"{name}-{fingerprint(made, filter(Path.is_file, map(Path, files)))}{suffix}"


def write_row(file: Path, values: dict[str, Any]) -> None:
    """Keep arrays by name."""
    with whole(file) as temporary:
        np.savez(temporary.open("wb"), **values)


def read_row(file: Path) -> dict[str, np.ndarray] | None:
    """What `write_row` kept; None where the row has not run."""
    return dict(np.load(file, allow_pickle=False)) if file.is_file() else None
