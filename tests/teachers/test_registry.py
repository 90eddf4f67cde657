import numpy as np
import pytest
import torch
from small_teachers import SMALL

from faces.align import TEMPLATES
from faces.errors import UserError
from teachers import Teacher, create_teacher, list_teachers
from teachers.backbones.swin import Swin
from teachers.registry import TEACHERS


def small_teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(
        Swin(**SMALL["swin_b"]),
        name="small",
        template="arcface",
        metric="cosine",
        licence="none",
        source="test",
    )


def test_names() -> None:
    assert {"swin_b", "dlib_resnet"} <= set(list_teachers())
    assert list_teachers("swin*") == ["swin_b"]
    assert list_teachers("nothing*") == []
    for spec in TEACHERS.values():
        assert spec.template in TEMPLATES
        assert spec.metric in ("cosine", "euclidean")
        assert spec.licence


@pytest.mark.parametrize(("name", "near"), [("swin_bb", "swin_b"), ("dlib", "dlib_resnet"), ("qqq", None)])
def test_an_unknown_name_lists_the_known_and_the_nearest(name, near) -> None:
    with pytest.raises(UserError) as caught:
        create_teacher(name)
    message = str(caught.value)
    assert all(known in message for known in TEACHERS)
    assert (f"did you mean {near}?" in message) if near else ("did you mean" not in message)


def test_wrong_weights_are_the_users_mistake(tmp_path) -> None:
    (tmp_path / "words.pt").write_text("words\n" * 50)
    torch.save(Swin(**SMALL["swin_b"]).state_dict(), tmp_path / "other.pt")
    for name in TEACHERS:
        with pytest.raises(UserError, match=r"words\.pt"):
            create_teacher(name, tmp_path / "words.pt")
        with pytest.raises(UserError, match=r"absent\.pt"):
            create_teacher(name, tmp_path / "absent.pt")
    with pytest.raises(UserError, match="another network"):
        create_teacher("dlib_resnet", tmp_path / "other.pt")
    with pytest.raises(UserError, match="not from the hub"):
        create_teacher("dlib_resnet", "hub")


def test_creating_a_teacher_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    create_teacher("dlib_resnet")
    assert torch.equal(torch.rand(3), expected)


def test_embed_equals_forward_and_counts() -> None:
    teacher = small_teacher().train()
    images = np.random.default_rng(0).integers(0, 256, (7, 120, 120, 3), dtype=np.uint8)
    done: list[int] = []
    got = teacher.embed(images[:, :, ::-1], batch=3, progress=done.append)
    assert done == [3, 3, 1]
    assert got.dtype == np.float32
    assert teacher.training
    x = torch.from_numpy(images[:, :, ::-1].copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = teacher.eval()(x).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert teacher.embed(images[:0]).shape == (0, 16)


@pytest.mark.parametrize("images", [np.zeros((1, 112, 112, 3), np.uint8), np.zeros((1, 120, 120, 3), np.float32)])
def test_embed_refuses_other_images(images) -> None:
    with pytest.raises(ValueError, match="embeds uint8"):
        small_teacher().embed(images)
