"""Tiny students for low-resolution faces."""

from students.registry import create_student, list_students

__all__ = ["create_student", "list_students"]
