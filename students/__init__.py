"""Tiny students for low-resolution faces."""

from students.registry import create_student, list_pretrained, list_students, load

__all__ = ["create_student", "list_pretrained", "list_students", "load"]
