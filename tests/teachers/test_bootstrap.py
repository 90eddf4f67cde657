import numpy as np
import pytest
import torch
from small_teachers import SMALL, SMALL_SWIN

from faces.align import crop
from faces.errors import UserError
from teachers import Teacher, bootstrap, create_teacher
from teachers.backbones.bootstrap import Bootstrap, is_bootstrap
from teachers.backbones.dlib_resnet import DlibResNet


class SmallBootstrap(Bootstrap):
    def __init__(self) -> None:
        super().__init__(**SMALL_SWIN)


def student_of(seed: int = 0) -> Teacher:
    return Teacher(
        Bootstrap(seed, **SMALL_SWIN),
        name="small",
        template="arcface",
        metric="cosine",
        licence="none",
        source="bootstrap, not fitted yet",
    ).eval()


@pytest.fixture(scope="module")
def reference() -> Teacher:
    torch.manual_seed(0)
    backbone = DlibResNet(**SMALL["dlib_resnet"])
    return Teacher(backbone, name="reference", template="dlib", metric="euclidean", licence="none", source="test")


@pytest.fixture
def forwards(monkeypatch):
    """How many images went through the random backbone."""
    counts: list[int] = []
    features = Bootstrap.features

    def counted(self: Bootstrap, x: torch.Tensor) -> torch.Tensor:
        counts.append(len(x))
        return features(self, x)

    monkeypatch.setattr(Bootstrap, "features", counted)
    return counts


def test_dual_ridge_is_the_primal_solution() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 7)) + 3, rng.normal(size=(20, 4)) - 1
    weight, bias = bootstrap.dual_ridge(x, y, 0.3)
    centred = x - x.mean(0)
    penalty = 0.3 * (centred**2).sum() / len(x)
    expected = np.linalg.solve(centred.T @ centred + penalty * np.eye(7), centred.T @ (y - y.mean(0)))
    np.testing.assert_allclose(weight, expected, atol=1e-4)
    np.testing.assert_allclose(x @ weight + bias, centred @ expected, atol=1e-4)


def test_views_of_one_face_share_a_target() -> None:
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(3 * 5, 4)) + 2
    targets = bootstrap.face_targets(embeddings, 3)
    means = np.stack([embeddings[[face, face + 5, face + 10]].mean(0) for face in range(5)])
    for view in range(15):
        expected = means[view % 5] - means.mean(0)
        np.testing.assert_allclose(targets[view], expected / np.linalg.norm(expected), atol=1e-12)


def test_without_weights_swin_is_an_unfitted_bootstrap(monkeypatch) -> None:
    # The full-size random network takes seconds to draw; this one is the same class, smaller.
    monkeypatch.setattr("teachers.registry.Bootstrap", SmallBootstrap)
    teacher = create_teacher("swin_b")
    assert teacher.bootstrap
    assert (teacher.embedding_dim, teacher.metric, teacher.input_px) == (128, "cosine", 120)
    with pytest.raises(UserError, match="not fitted yet"):
        teacher.embed(np.zeros((1, 120, 120, 3), np.uint8))


def test_fit_follows_the_reference(faces, reference, tmp_path) -> None:
    teacher = student_of()
    done: list[int] = []
    bootstrap.fit_bootstrap(teacher, faces, reference, tmp_path, views=48, progress=done.append)
    assert sum(done) == bootstrap.view_count(len(faces), 48) == 24
    assert teacher.bootstrap
    assert "24 views of orl fitted to reference" in teacher.source
    got = teacher.embed(crop(faces.images, faces.landmarks, "arcface", 120))
    wanted = reference.embed(crop(faces.images, faces.landmarks, "dlib"))
    got, wanted = (z - z.mean(0) for z in (got, wanted))
    got, wanted = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (got, wanted))
    own, others = (got * wanted).sum(1), (got * np.roll(wanted, 1, axis=0)).sum(1)
    assert own.mean() > 0.8
    assert own.mean() > others.mean() + 0.4


def test_a_killed_fit_continues_with_what_it_computed(faces, reference, tmp_path, monkeypatch, forwards) -> None:
    monkeypatch.setattr(bootstrap, "_CHUNK", 8)
    whole, resumed = student_of(), student_of()
    bootstrap.fit_bootstrap(whole, faces, reference, tmp_path / "whole", views=24)
    assert sum(forwards) == 24
    forwards.clear()

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bootstrap.fit_bootstrap(resumed, faces, reference, tmp_path / "killed", views=24, progress=killed)
    assert sum(forwards) == 8
    assert not resumed.backbone.fitted
    bootstrap.fit_bootstrap(resumed, faces, reference, tmp_path / "killed", views=24)
    assert sum(forwards) == 24
    for name, value in whole.backbone.head.state_dict().items():
        assert torch.equal(value, resumed.backbone.head.state_dict()[name])


def test_other_faces_do_not_use_the_cache(faces, reference, tmp_path, forwards) -> None:
    for some in (faces, faces.subset(range(6))):
        bootstrap.fit_bootstrap(student_of(), some, reference, tmp_path, views=len(some))
    assert sum(forwards) == 18


def test_saved_and_read_again(faces, reference, tmp_path) -> None:
    teacher = student_of(seed=4)
    bootstrap.fit_bootstrap(teacher, faces, reference, tmp_path / "cache", views=12)
    path = tmp_path / "teacher.safetensors"
    teacher.backbone.save(path)
    assert path.stat().st_size < 4 * 128 * (teacher.backbone.net.features_dim + 1) + 2000
    assert is_bootstrap(path)
    again = create_teacher("swin_b", path)
    images = np.random.default_rng(0).integers(0, 256, (3, 120, 120, 3), dtype=np.uint8)
    assert again.bootstrap
    np.testing.assert_array_equal(again.embed(images), teacher.embed(images))


def test_damaged_files_and_other_generators(tmp_path, monkeypatch) -> None:
    path = tmp_path / "teacher.safetensors"
    Bootstrap(**SMALL_SWIN).save(path)
    content = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-100])
    assert not is_bootstrap(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="cut short"):
        create_teacher("swin_b", tmp_path / "cut.safetensors")
    seed = content.replace(b'"seed":"0"', b'"seed":"1"')
    assert seed != content
    (tmp_path / "seed.safetensors").write_bytes(seed)
    with pytest.raises(UserError, match="other random weights"):
        create_teacher("swin_b", tmp_path / "seed.safetensors")


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = Bootstrap(3, **SMALL_SWIN)
    torch.manual_seed(2)
    other = Bootstrap(3, **SMALL_SWIN)
    assert one.fingerprint() == other.fingerprint() != Bootstrap(4, **SMALL_SWIN).fingerprint()
    assert all(torch.equal(p, p.to(torch.bfloat16).to(p.dtype)) for p in one.net.parameters())


def test_both_precisions_are_the_same_network(monkeypatch) -> None:
    pair = []
    for fast in (True, False):
        monkeypatch.setattr("teachers.backbones.bootstrap.fast_bfloat16", lambda fast=fast: fast)
        pair.append(Bootstrap(3, **SMALL_SWIN))
    assert [one.precision for one in pair] == [torch.bfloat16, torch.float32]
    assert pair[0].fingerprint() == pair[1].fingerprint()
    x = torch.rand(2, 3, 120, 120)
    low, high = (one.features(x).float() for one in pair)
    assert torch.nn.functional.cosine_similarity(low, high).min() > 0.999


def test_the_number_of_views() -> None:
    assert bootstrap.view_count(300) == 600
    assert bootstrap.view_count(5000) == bootstrap.DEFAULT_VIEWS
    assert bootstrap.view_count(5000, 10**6) == bootstrap.MOST_VIEWS
    assert bootstrap.view_count(10) == 10 * bootstrap.MOST_ROUNDS


def test_the_second_view_is_the_mirror_image(faces, reference) -> None:
    for crops in bootstrap._views(faces, [student_of(), reference], 24, seed=0):
        np.testing.assert_array_equal(crops[12:], crops[:12, :, ::-1])
    (few,) = bootstrap._views(faces, [reference], 5, seed=0)
    assert len(few) == 5


def test_what_cannot_be_fitted(faces, reference, tmp_path) -> None:
    with pytest.raises(UserError, match="only a bootstrap is fitted"):
        bootstrap.fit_bootstrap(reference, faces, reference, tmp_path)
    with pytest.raises(UserError, match="at least 2 faces"):
        bootstrap.fit_bootstrap(student_of(), faces.subset([0]), reference, tmp_path)
