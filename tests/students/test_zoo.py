import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import students
from export.kit import student_crops
from export.stage import reference_embeddings
from faces import open_faces, verification
from faces.errors import UserError
from students import registry
from students.registry import ZOO, load_weights, zoo_file


@pytest.mark.parametrize("name", students.list_pretrained())
def test_a_trained_student_tells_people_apart_who_are_in_no_training_set(name):
    student = students.load(name, pretrained=True)
    assert not student.training
    faces = open_faces("orl")
    found = reference_embeddings(student, student_crops(faces, None, student.input_px))
    pairs = verification.make_pairs(faces.identities, 0, 1500)
    scores = verification.similarity(found[pairs.a], found[pairs.b], "cosine")
    accuracy = verification.correct_by_fold(scores, pairs).mean()
    torch.manual_seed(0)
    fresh = reference_embeddings(students.load(name), student_crops(faces, None, student.input_px))
    scores = verification.similarity(fresh[pairs.a], fresh[pairs.b], "cosine")
    assert accuracy > 0.85
    assert accuracy > verification.correct_by_fold(scores, pairs).mean() + 0.1


@pytest.mark.parametrize("name", students.list_pretrained())
def test_each_has_a_card_with_its_figures_and_no_path(name):
    card = (ZOO / f"{name}.md").read_text()
    assert f"# {name}, distilled from" in card
    for needed in ("same@16", "95 % interval", "## Licence", "SHA-256", "python -m compress.pipeline"):
        assert needed in card
    assert " /" not in card.replace(" / ", "")
    assert zoo_file(name).stat().st_size < 1_000_000
    assert all(np.isfinite(value.numpy()).all() for value in load_file(zoo_file(name)).values())


def test_what_is_not_trained_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown student"):
        students.load("tiny17", pretrained=True)
    (tmp_path / "tiny16.safetensors").touch()
    monkeypatch.setattr(registry, "ZOO", tmp_path)
    with pytest.raises(UserError, match="no trained weights of 'tiny96' come with the package"):
        students.load("tiny96", pretrained=True)


def test_weights_of_something_else(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"x\.safetensors does not hold the weights of a tiny16"):
        load_weights(students.create_student("tiny16"), tmp_path / "x.safetensors")


def test_weights_of_another_student_are_told_in_one_line(tmp_path):
    tiny = students.create_student("tiny16")
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    with pytest.raises(UserError) as told:
        load_weights(tiny, zoo_file("small16"))
    assert str(told.value).endswith(" tensors are missing, unknown or of another shape, first stem.0.weight")
    assert all(torch.equal(tiny.state_dict()[name], value) for name, value in before.items())
    for change in ({"more": torch.zeros(1)}, {"mimic.bias": torch.zeros(127)}):
        save_file(before | change, tmp_path / "changed.safetensors")
        with pytest.raises(UserError, match=f": 1 tensors are .* first {next(iter(change))}$"):
            load_weights(tiny, tmp_path / "changed.safetensors")
    # The sizes of one kind have the same tensors.
    load_weights(students.create_student("tiny32"), zoo_file("tiny16"))
