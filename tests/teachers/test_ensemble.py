"""Several teachers as one: features side by side, each of length 1."""

import numpy as np
import pytest
import torch
from small_teachers import SMALL, SMALL_SWIN

from faces.errors import UserError
from teachers import create_teacher
from teachers.backbones.bootstrap import Bootstrap
from teachers.ensemble import Ensemble
from teachers.names import members
from teachers.registry import create_single, known_teacher
from teachers.teacher import Teacher


def small(name: str, **given) -> Teacher:
    torch.manual_seed(0)
    spec = known_teacher(name)
    manner = {"template": spec.template, "metric": spec.metric}
    return Teacher(spec.build(**SMALL[name]), **{"name": name, **manner, "licence": "L", "source": name[:3], **given})


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return Ensemble([small("dlib_resnet"), small("mobilefacenet")])


def test_it_joins_what_its_members_say_of_the_same_faces(ensemble, faces) -> None:
    done: list[int] = []
    for px in (None, 16):
        found = ensemble.embed_faces(faces, px, progress=done.append)
        parts = [member.embed_faces(faces, px) for member in ensemble.members]
        expected = np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], 1)
        assert found.shape == (12, 128 + 16)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(done) == 24


def test_chunks_do_not_show(ensemble, faces, monkeypatch) -> None:
    whole = ensemble.embed_faces(faces)
    monkeypatch.setattr("teachers.ensemble._CHUNK", 5)
    np.testing.assert_allclose(ensemble.embed_faces(faces), whole, atol=1e-5)
    assert ensemble.embed_faces(faces.subset([])).shape == (0, 144)


def test_what_it_says_of_itself(ensemble) -> None:
    assert (ensemble.name, ensemble.source) == ("dlib_resnet+mobilefacenet", "dli + mob")
    assert (ensemble.metric, ensemble.bootstrap, ensemble.trainable) == ("cosine", False, False)
    assert (ensemble.embedding_dim, ensemble.input_px) == (144, None)
    assert "dlib_resnet: L" in ensemble.licence
    assert Ensemble([small("mobilefacenet"), small("iresnet18")]).input_px == 112


def test_a_bootstrap_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"swin_b has no trained weights.*--teacher-weights FILE\+FILE"):
        create_teacher("dlib_resnet+swin_b")
    fitted = Teacher(Bootstrap(**SMALL_SWIN), name="swin_b", template="arcface", metric="cosine", licence="", source="")
    with pytest.raises(UserError, match="swin_b has no trained weights"):
        Ensemble([fitted, small("mobilefacenet")])


def test_each_member_gets_its_own_weights(tmp_path) -> None:
    file = tmp_path / "m.pt"
    torch.save(create_teacher("mobilefacenet", "random", seed=5).backbone.state_dict(), file)
    ensemble = create_teacher("dlib_resnet+mobilefacenet", f"+{file}")
    assert isinstance(ensemble, Ensemble)
    assert [member.name for member in ensemble.members] == ["dlib_resnet", "mobilefacenet"]
    assert ensemble.source.endswith(str(file))
    with pytest.raises(UserError, match="is an ensemble, and one network is wanted"):
        create_single("dlib_resnet+mobilefacenet", f"+{file}")


def test_names_and_weights_that_do_not_belong_together() -> None:
    assert members("a", "x+y") == [("a", "x+y")]
    assert members("a+b+c", "x++hub") == [("a", "x"), ("b", None), ("c", "hub")]
    assert members("a+b", None) == [("a", None), ("b", None)]
    for name, weights, words in (
        ("a+b", "x", r"needs 2 weights, 'x' are 1.*as in \+FILE"), ("a+b", "x+y+z", "are 3"),
        ("a+", None, "without a name"), ("a+a", None, "twice"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            members(name, weights)
    with pytest.raises(UserError, match="unknown teacher 'dlib'; did you mean dlib_resnet"):
        create_teacher("mobilefacenet+dlib", "random+")
