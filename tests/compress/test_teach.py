"""Stage teacher: features of faces and of their mirror images, in chunks from which a killed run continues."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_as_torchrun
from safetensors.torch import save_file

from compress import teach
from compress.config import load_config
from compress.data import TEST
from compress.run import Run
from faces.align import TEMPLATES, crop, template_landmarks
from faces.dataset import CROP_PX, Faces, mirrored
from faces.distributed import follow, processes
from teachers.backbones.dlib_resnet import DlibResNet
from teachers.backbones.mobilefacenet import MobileFaceNet
from teachers.registry import create_teacher


def noise(count):
    rng = np.random.default_rng(0)
    points = np.tile(template_landmarks(CROP_PX), (count, 1, 1)) + rng.normal(0, 1.5, (count, 5, 2))
    return Faces(
        images=rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2),
        landmarks=points.astype(np.float32),
        identities=np.arange(count) % 3,
        names=("a", "b", "c"),
        keys=tuple(map(str, range(count))),
    )


class Sides:
    """A teacher that sees how bright the left, the right and the top of the aligned face are."""

    name, embedding_dim = "sides", 3

    def __init__(self):
        self.seen = []

    def embed_faces(self, faces, progress=None):
        self.seen += faces.keys
        crops = crop(faces.images, faces.landmarks, "arcface").astype(np.float32) / 255
        if progress:
            progress(len(faces))
        parts = (crops[:, :, :40], crops[:, :, -40:], crops[:, :40])
        return np.stack([part.mean((1, 2, 3)) for part in parts], axis=1)


def test_what_changes_the_stages_key():
    def key(*settings, method="none"):
        given = dict(setting.split("=") for setting in settings)
        return str(teach.settings(load_config("quick", None, {"teacher.finetune.method": method, **given}, ())))

    # How a teacher would be fine-tuned that is not, and what that would be measured by, changes nothing.
    for setting in ("teacher.finetune.steps=7", "teacher.checks=3", "teacher.check_pairs=30", "evaluate.folds=2"):
        assert key(setting) == key()
        assert key(setting, method="full") != key(method="full")
    for setting in ("teacher.mirror=true", "teacher.views=20", "teacher.name=dlib_resnet", "seed=1"):
        assert key(setting) != key()


def test_a_mirrored_face_is_the_mirror_image_of_the_face():
    faces = noise(4)
    other = mirrored(faces)
    np.testing.assert_array_equal(mirrored(other).images, faces.images)
    np.testing.assert_allclose(mirrored(other).landmarks, faces.landmarks, atol=1e-4)
    for face, twin in zip(faces.landmarks, other.landmarks, strict=True):
        for point, same in enumerate((1, 0, 2, 4, 3)):
            assert twin[same] == pytest.approx([CROP_PX - 1 - face[point, 0], face[point, 1]], abs=1e-4)
    # The template is nearly symmetric, so the aligned crops lie on each other.
    one, two = (crop(some.images, some.landmarks, "arcface").astype(float) for some in (faces, other))
    inside = np.s_[:, 20:-20, 20:-20]
    apart = np.abs(one[:, :, ::-1] - two)[inside].mean()
    assert apart < 0.3 * np.abs(one - two)[inside].mean()
    assert TEMPLATES["arcface"][1][0, 0] < TEMPLATES["arcface"][1][1, 0]


def test_the_target_is_the_mean_of_both_at_the_faces_own_length():
    faces, teacher, done = noise(600), Sides(), []
    own, twin = teacher.embed_faces(faces), teacher.embed_faces(mirrored(faces))
    found = teach.embed(teacher, faces, True, done.append)
    for i in range(600):
        mean = [(float(own[i, d]) + float(twin[i, d])) / 2 for d in range(3)]
        length = np.sqrt(sum(float(own[i, d]) ** 2 for d in range(3)) / sum(value**2 for value in mean))
        np.testing.assert_allclose(found[i], [value * length for value in mean], rtol=1e-5)
    assert sum(done) == 600
    np.testing.assert_array_equal(teach.embed(teacher, faces), own)
    # The side that a face shows no longer matters.
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(own, axis=1), rtol=1e-5)
    unit = [
        one / np.linalg.norm(one, axis=1, keepdims=True) for one in (found, teach.embed(teacher, mirrored(faces), True))
    ]
    np.testing.assert_allclose(*unit, atol=1e-5)
    assert np.abs(unit[0] - own / np.linalg.norm(own, axis=1, keepdims=True)).max() > 1e-3
    assert teach.embed(teacher, faces.subset([]), True).shape == (0, 3)


def test_mirrored_targets_continue_from_their_chunks(tmp_path):
    config = load_config("quick", None, {"teacher.name": "dlib_resnet"}, ["teacher.mirror=true"])
    run, faces, teacher = Run(tmp_path, config, quiet=True), noise(600), Sides()
    faces.save(run.path(teach.TRAIN))
    whole = teach.embed_resumable(run, teacher, None, faces)
    np.testing.assert_allclose(whole, teach.embed(teacher, faces, True), atol=1e-3)
    assert np.abs(whole - teach.embed(teacher, faces)).max() > 0.01
    chunks = sorted(tmp_path.glob("work/*/*.npy"))
    assert len(chunks) == 2
    chunks[1].unlink()
    teacher.seen.clear()
    np.testing.assert_array_equal(teach.embed_resumable(run, teacher, None, faces), whole)
    assert sorted(teacher.seen) == sorted(2 * faces.keys[512:])


def write_weights(backbone, file):
    torch.manual_seed(0)
    save_file(backbone().state_dict(), file)
    return file


def shared_features(folder, file):
    """What the leader of two processes gets, which embed every second face each."""
    teach._CHUNK = 1
    with processes("cpu") as leads:
        if not leads:
            return follow()
        config = load_config("quick", None, {"teacher.name": teach.REFERENCE}, [])
        run, faces, teacher = Run(Path(folder), config, quiet=True), noise(4), create_teacher(teach.REFERENCE, file)
        faces.save(run.path(teach.TRAIN))
        features = teach.embed_resumable(run, teacher, file, faces)
        return float(np.abs(features - teacher.embed_faces(faces)).max()), float(np.abs(features).max())


def test_every_process_embeds_with_the_weights_given(tmp_path):
    """Also where these are not those that come with the teacher's package."""
    file = write_weights(DlibResNet, tmp_path / "weights.safetensors")
    (apart, largest), nothing = run_as_torchrun(2, shared_features, str(tmp_path / "run"), str(file))
    assert nothing is None
    assert apart < 1e-3 * largest


@pytest.mark.parametrize(
    ("name", "members"), [("dlib_resnet", 1), ("dlib_resnet+mobilefacenet", 2), ("mobilefacenet", 1)]
)
def test_the_stage_embeds_with_the_teachers_of_its_name(tmp_path, name, members):
    file = write_weights(MobileFaceNet, tmp_path / "weights.safetensors")
    weights = {"dlib_resnet": None, "dlib_resnet+mobilefacenet": f"+{file}", "mobilefacenet": str(file)}[name]
    config = load_config("quick", None, {"teacher.name": name, "teacher.weights": weights}, ["data.virtual=0"])
    run, faces = Run(tmp_path / "run", config, quiet=True), noise(6)
    faces.save(run.path(teach.TRAIN))
    faces.save(run.path(TEST))
    facts = teach.run(run)
    assert facts["name"] == name
    assert not facts["bootstrap"]
    teacher = create_teacher(name, weights)
    assert len(teacher.members) == members
    np.testing.assert_allclose(np.load(run.path(teach.FEATURES)), teacher.embed_faces(faces), rtol=1e-2, atol=1e-3)
