"""Students by name: one architecture, four input sizes."""

import difflib
import fnmatch
from functools import partial

from faces.errors import UserError
from students.tiny import Tiny

_STUDENTS = {f"tiny{px}": partial(Tiny, input_px=px) for px in (16, 32, 64, 96)}


def list_students(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, e.g. `list_students("tiny*")`."""
    return fnmatch.filter(_STUDENTS, pattern)


def create_student(name: str) -> Tiny:
    """A freshly initialised student (Xavier, drawn from torch's global generator); UserError on an unknown name."""
    if name not in _STUDENTS:
        near = difflib.get_close_matches(name, _STUDENTS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"unknown student {name!r}{hint} Known: {', '.join(_STUDENTS)}")
    return _STUDENTS[name]()
