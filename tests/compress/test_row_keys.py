"""What is kept of a study is not taken for another's: the names of its rows."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from compress import adaptation_rows, hallucination_rows, mode_study, teacher_study
from compress.config import load_config
from compress.espcn import Recipe
from compress.mode_rows import TABLES
from faces.align import template_landmarks
from faces.dataset import CROP_PX, Faces
from faces.parts import Part
from faces.verification import make_pairs


def modes(config, train, part, folder):
    return mode_study._Study(config, None, train, [part], folder)._path(TABLES["modes"].rows[0], 0)


def adaptation(config, train, part, folder):
    return adaptation_rows.Study(config, train, [part], folder).path(adaptation_rows.CASES[1], config.teacher.name, 0)


def hallucination(config, train, part, folder):
    teacher = SimpleNamespace(name=config.teacher.name)
    study = hallucination_rows.Study(teacher, {}, train, [part], Recipe(), 0, folder)
    return study._file("scores", hallucination_rows.ESPCN, 16)


def teachers(config, train, part, folder):
    return teacher_study._Study(config, train, part, folder)._name("none", None, 0)


def six_people():
    return Faces(
        images=np.zeros((24, 8, 8, 3), np.uint8),
        landmarks=np.tile(template_landmarks(CROP_PX), (24, 1, 1)).astype(np.float32),
        identities=np.arange(24) // 4,
        names=tuple("abcdef"),
        keys=tuple(map(str, range(24))),
    )


@pytest.mark.parametrize("name", [modes, adaptation, hallucination, teachers])
def test_a_row_is_named_by_all_that_it_is_made_of(tmp_path, name):
    file = tmp_path / "teacher.onnx"
    config = load_config("standard", None, {"teacher.name": f"onnx:{file}"}, [])
    train = six_people()
    part = Part("val", train, make_pairs(train.identities, 0, most=20))
    moved = replace(train, landmarks=train.landmarks + 1)
    others = [
        (train, part),
        (moved, part),
        (train, replace(part, faces=moved)),
        (train, replace(part, pairs=make_pairs(train.identities, 1, most=20))),
    ]
    found = []
    for content in ("one", "two"):
        file.write_text(content)
        found += [name(config, *one, tmp_path) for one in others]
    assert len(set(found)) == 8
    assert name(config, train, part, tmp_path) == found[4]


@pytest.mark.parametrize("name", [modes, adaptation, teachers])
def test_a_row_is_named_by_the_students_first_weights(tmp_path, name):
    file, found = tmp_path / "start.safetensors", set()
    config = load_config("standard", None, {"teacher.name": "dlib_resnet", "distill.weights": str(file)}, [])
    faces = six_people()
    part = Part("val", faces, make_pairs(faces.identities, 0, most=20))
    for content in ("one", "two"):
        file.write_text(content)
        found.add(name(config, faces, part, tmp_path))
    assert len(found) == 2
