"""Students by name: architecture and input size."""

import difflib
import fnmatch
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from faces.errors import UserError
from students.small import Small
from students.student import Student
from students.tiny import Tiny

ZOO = Path(__file__).parent / "zoo"
"""Trained students, NAME.safetensors, and the model card of each, NAME.md."""
_STUDENTS: dict[str, Callable[[], Student]] = {
    **{f"tiny{px}": partial(Tiny, px) for px in (16, 32, 64, 96)},
    **{f"small{px}": partial(Small, px) for px in (16, 32)},
}


def list_students(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, e.g. `list_students("tiny*")`."""
    return fnmatch.filter(_STUDENTS, pattern)


def create_student(name: str) -> Student:
    """A freshly initialised student (Xavier, drawn from torch's global generator); UserError on an unknown name."""
    if name not in _STUDENTS:
        near = difflib.get_close_matches(name, _STUDENTS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"unknown student {name!r}{hint} Known: {', '.join(_STUDENTS)}")
    return _STUDENTS[name]()


def name_of(student: Student) -> str:
    """The name that gives such a student."""
    return f"{type(student).__name__.lower()}{student.input_px}"


def list_pretrained() -> list[str]:
    """Names of the students that come trained with the package."""
    return sorted(file.stem for file in ZOO.glob("*.safetensors"))


def zoo_file(name: str) -> Path:
    """The trained weights of a student in the package; UserError where it has none."""
    file = ZOO / f"{name}.safetensors"
    if not file.is_file():
        raise UserError(
            f"no trained weights of {name!r} come with the package. Trained: {', '.join(list_pretrained())}"
        )
    return file


def load_weights(student: Student, file: str | Path) -> Student:
    """Put the weights of a safetensors file into `student`, in place; UserError where they do not fit."""
    refusal = f"{file} does not hold the weights of a {name_of(student)}: "
    try:
        given = load_file(file)
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{refusal}{problem}") from None
    wanted = student.state_dict()
    if wrong := [
        name
        for name in {**wanted, **given}
        if name not in given or name not in wanted or given[name].shape != wanted[name].shape
    ]:
        # PyTorch would name every one.
        raise UserError(f"{refusal}{len(wrong)} tensors are missing, unknown or of another shape, first {wrong[0]}")
    student.load_state_dict(given)
    return student


def load(name: str, pretrained: bool = False) -> Student:
    """A student in evaluation mode: trained as its card `students/zoo/NAME.md` says, or of random weights.

    RGB faces in [0, 1], (N, 3, p, p), aligned to the ArcFace template and reduced to p = `input_px`, to (N, 128);
    two are compared by their cosine. UserError on an unknown name, or one that does not come trained.

    >>> student = students.load("tiny16", pretrained=True)
    """
    student = create_student(name)
    return (load_weights(student, zoo_file(name)) if pretrained else student).eval()
