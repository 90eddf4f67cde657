"""Teachers: large face-recognition networks under one interface."""

from teachers.registry import Teacher, create_teacher, list_teachers

__all__ = ["Teacher", "create_teacher", "list_teachers"]
