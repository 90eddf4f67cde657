import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import distill
from compress.config import load_config
from compress.distill import own_features, prepare, start_student
from compress.run import Run
from faces.align import template_landmarks
from faces.dataset import CROP_PX, Faces
from faces.errors import UserError
from faces.files import write_json
from students.batches import training_crops

FILES = ("targets", "features", "reference_targets", "reference_features")


def small(**more):
    values = {"samples": 96, "batch": 16} | more
    return load_config("quick", None, {f"distill.{key}": value for key, value in values.items()}, [])


def noise(count=12, people=3):
    rng = np.random.default_rng(0)
    return Faces(
        images=rng.integers(0, 256, (count, CROP_PX, CROP_PX, 3), dtype=np.uint8),
        landmarks=np.tile(template_landmarks(CROP_PX), (count, 1, 1)).astype(np.float32),
        identities=np.arange(count) % people,
        names=tuple("abc"[:people]),
        keys=tuple(map(str, range(count))),
    )


@pytest.fixture
def folder(tmp_path):
    """A run folder as the stages before distill leave it; each file of targets holds different numbers."""
    faces = noise()
    (tmp_path / "work").mkdir()
    for part in ("train", "test"):
        faces.save(tmp_path / f"work/{part}.npz")
    for seed, name in enumerate(FILES):
        array = np.random.default_rng(seed).standard_normal((12, 128)).astype(np.float32)
        np.save(tmp_path / f"work/{name}.npy", array)
    return tmp_path


def run(folder, bootstrap=False, **how):
    record = {"fingerprint": "x", "summary": "", "seconds": 1, "files": [], "facts": {"bootstrap": bootstrap}}
    write_json(folder / "stages/teacher.json", record)
    one = Run(folder, small(**how), quiet=True)
    one.key = f"key-{json.dumps(how, sort_keys=True)}".replace("/", "-")
    return distill.run(one)


def by_face(store):
    crops = np.empty(store.shape, np.uint8)
    crops[store.order] = store.rows(np.arange(len(store)))
    return crops


def test_labels_are_taken_where_the_mode_has_a_c(tmp_path):
    faces, targets = noise(), np.zeros((12, 128), np.float32)
    for mode in ("c", "sc", "dc", "s"):
        examples = prepare(faces, targets, small(mode=mode).distill, 16, 0, tmp_path)
        assert (examples.labels is None) == (mode == "s")
        assert examples.targets is targets
        assert examples.margin == small().distill.margin


def test_without_a_teacher_only_labelled_faces_are_seen(tmp_path):
    faces = noise()
    faces.identities[3] = -1
    alone, mixed = (prepare(faces, None, small(mode=mode).distill, 16, 0, tmp_path) for mode in ("c", "sc"))
    np.testing.assert_array_equal(by_face(alone.crops), np.delete(by_face(mixed.crops), 3, axis=0))
    np.testing.assert_array_equal(by_face(mixed.crops), training_crops(faces, 16, small().distill.margin))
    assert list(tmp_path.iterdir()) == []
    assert (alone.labels >= 0).all()
    assert mixed.labels[3] == -1


@pytest.mark.parametrize(
    ("mode", "own", "reference"),
    [
        ("s", "targets", "reference_targets"),
        ("sc", "targets", "reference_targets"),
        ("dc", "features", "reference_features"),
    ],
)
def test_each_mode_learns_from_its_targets(folder, monkeypatch, mode, own, reference):
    seen = []
    real = distill.train_student

    def spy(student, examples, *rest):
        seen.append(examples.targets)
        return real(student, examples, *rest)

    monkeypatch.setattr(distill, "train_student", spy)
    run(folder, bootstrap=True, mode=mode)
    for found, name in zip(seen, (own, reference), strict=True):
        stored = np.load(folder / f"work/{name}.npy")
        np.testing.assert_array_equal(found, own_features(stored) if mode == "dc" else stored)


def test_labels_alone_know_no_teacher_and_no_reference(folder):
    facts = run(folder, bootstrap=True, mode="c")
    assert not (folder / "reference_student.safetensors").exists()
    assert facts["summary"].startswith("tiny16, mode c, labels alone, ")


def test_own_features_differ_from_the_teachers_by_a_shift_and_one_scale():
    features = np.random.default_rng(0).normal(3, 2, (50, 8)).astype(np.float32)
    found = own_features(features)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-6)
    assert np.linalg.norm(found, axis=1).mean() == pytest.approx(1, abs=1e-6)
    distance, own = (np.linalg.norm(x[:, None] - x[None], axis=2) for x in (features, found))
    np.testing.assert_allclose(own[own > 0] / distance[own > 0], own.max() / distance.max(), rtol=1e-4)


@pytest.mark.parametrize(("px", "margin", "side"), [(16, 0.125, 48), (32, 0.0, 96), (96, 0.125, 144), (96, 0.0, 115)])
def test_training_crops_are_as_fine_as_three_pixels_for_one(px, margin, side):
    crops = training_crops(noise(2), px, margin)
    assert (crops.shape, crops.dtype) == ((2, side, side, 3), np.uint8)


def test_a_bootstrap_has_its_reference_beside_it(folder):
    run(folder, bootstrap=True)
    own, other = (load_file(folder / f"{name}.safetensors") for name in ("student", "reference_student"))
    assert set(own) == set(other)
    assert any(not torch.equal(own[name], other[name]) for name in own)
    assert len((folder / "curves.csv").read_text().splitlines()) == 7  # header and six steps


def test_weights_as_given_learn_from_no_reference(folder):
    facts = run(folder, bootstrap=True, samples=0, weights="zoo")
    assert facts["summary"] == "tiny16, weights as given (zoo), not trained"
    assert not (folder / "reference_student.safetensors").exists()
    assert not distill.has_reference(Run(folder, small(samples=0, weights="zoo"), quiet=True))
    assert distill.has_reference(Run(folder, small(), quiet=True))


def test_no_reference_without_a_bootstrap(folder):
    facts = run(folder)
    assert not (folder / "reference_student.safetensors").exists()
    assert (facts["name"], facts["mode"], facts["loss"], facts["input_px"]) == ("tiny16", "sc", "relational", 16)
    assert run(folder, mode="c")["loss"] == "none"


def test_what_ended_inside_the_stage_is_not_trained_again(folder, monkeypatch):
    run(folder, bootstrap=True)
    whole = {name: (folder / name).read_bytes() for name in ("student.safetensors", "reference_student.safetensors")}
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "curves.csv").unlink()
    for file in (folder / "work").glob("reference_student-*"):
        file.unlink()
    trained = []
    real = distill.train_student

    def spy(student, examples, *rest):
        trained.append(examples)
        return real(student, examples, *rest)

    monkeypatch.setattr(distill, "train_student", spy)
    run(folder, bootstrap=True)
    assert len(trained) == 1
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert (folder / "curves.csv").exists()


def test_the_bytes_of_a_student_do_not_hang_on_chance(folder):
    def student():
        run(folder)
        for file in (folder / "work").glob("student-*"):
            file.unlink()
        return (folder / "student.safetensors").read_bytes()

    # The order of a header with several notes would differ from call to call.
    assert len({student() for _ in range(6)}) == 1


def test_a_student_starts_by_seed_or_from_a_file(tmp_path):
    how = small().distill
    one, same, other = (start_student(how, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    save_file(other, tmp_path / "other.safetensors")
    loaded = start_student(small(weights=str(tmp_path / "other.safetensors")).distill, 1).state_dict()
    assert all(torch.equal(loaded[name], other[name]) for name in other)
    save_file({"x": torch.zeros(1)}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="does not hold the weights of a tiny16"):
        start_student(small(weights=str(tmp_path / "none.safetensors")).distill, 1)
