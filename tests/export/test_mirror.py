"""A student and its mirror image as one network, against flipping the face."""

import pytest
import torch

import students
from export.mirror import Mirrored
from students.registry import create_student
from students.student import count_macs, count_parameters


@pytest.mark.parametrize("name", students.list_pretrained())
def test_it_adds_what_the_student_says_of_the_flipped_face(name):
    student = students.load(name, pretrained=True)
    faces = torch.rand(3, 3, student.input_px, student.input_px) * torch.linspace(0, 1, student.input_px)
    with torch.no_grad():
        one, other = student(faces), student(faces.flip(3))
        assert (one - other).norm() > 0.1 * one.norm()
        found = Mirrored(student).eval()(faces)
        torch.testing.assert_close(found, one + other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
        # The student itself is left as it was.
        torch.testing.assert_close(student(faces), one)


def test_it_costs_twice_as_much():
    student = create_student("tiny16")
    both = Mirrored(student)
    assert count_parameters(both) == 2 * count_parameters(student)
    assert count_macs(both, 16) == 2 * count_macs(student, 16)
