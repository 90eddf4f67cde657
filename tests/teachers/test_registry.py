import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_teachers import SMALL, SMALL_SWIN

from faces.align import TEMPLATES, crop
from faces.degrade import reduce
from faces.errors import UserError
from teachers import Teacher, create_teacher, list_teachers
from teachers.backbones.bootstrap import Bootstrap
from teachers.backbones.swin import Swin
from teachers.registry import TEACHERS, is_stand_in, weight_files
from teachers.settings import finetune_settings
from teachers.tuned import save_tuned


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
    assert list_teachers("iresnet*") == ["iresnet18", "iresnet50", "iresnet100"]
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
    assert all(known in message for known in (*TEACHERS, "timm:NAME", "onnx:FILE", "a+b"))
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


def test_without_weights_a_name_says_what_to_give() -> None:
    for name in set(TEACHERS) - {"dlib_resnet", "swin_b"}:
        with pytest.raises(UserError, match=f"no package ships weights for {name}: give --teacher-weights FILE$"):
            create_teacher(name)
        with pytest.raises(UserError, match="no hub is known"):
            create_teacher(name, "hub")
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"give --teacher-weights FILE, or `hub` to download"):
        create_teacher("timm:test_vit")


def test_random_weights_follow_the_seed_and_say_so() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (create_teacher("mobilefacenet", "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert first.source == "random weights, not trained"
    assert first.trainable
    assert not first.bootstrap
    assert not first.training
    weights = [teacher.backbone.embed[0].weight for teacher in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_file_of_its_own_weights_loads(tmp_path) -> None:
    trained = create_teacher("mobilefacenet", "random", seed=3)
    torch.save(trained.backbone.state_dict(), tmp_path / "mine.pt")
    teacher = create_teacher("mobilefacenet", tmp_path / "mine.pt")
    assert teacher.source == str(tmp_path / "mine.pt")
    assert "not stated" in teacher.licence
    x = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), trained(x), atol=1e-5, rtol=1e-4)


def test_timm_names_are_checked_without_a_network(monkeypatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"knows no model 'resnt18'; did you mean resnet18\?"):
        create_teacher("timm:resnt18")
    with pytest.raises(UserError, match=r"unknown option 'mean=3' \(known: px=\.\.\., template"):
        create_teacher("timm:test_vit?mean=3", "random")
    with pytest.raises(UserError, match="px=7 is not a whole number from 8"):
        create_teacher("timm:test_vit?px=7", "random")
    with pytest.raises(UserError, match=r"cannot get the timm model test_vit\.no_tag"):
        create_teacher("timm:test_vit.no_tag", "random")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'bridgeface\[timm\]'"):
        create_teacher("timm:test_vit", "random")


def test_the_files_that_a_teacher_reads() -> None:
    assert weight_files("dlib_resnet") == weight_files("swin_b", "hub") == []
    assert weight_files("swin_b", "a+b.pt") == [Path("a+b.pt")]
    assert weight_files("onnx:x/y.onnx?mean=0") == [Path("x/y.onnx")]
    assert weight_files("dlib_resnet+iresnet50+onnx:y.onnx", "+w.pt+") == [Path("w.pt"), Path("y.onnx")]


def test_only_a_bootstrap_stands_in(tmp_path) -> None:
    Bootstrap(**SMALL_SWIN).save(tmp_path / "fitted.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    fitted = Bootstrap.from_file(tmp_path / "fitted.safetensors")
    teacher = Teacher(fitted, name="swin_b", template="arcface", metric="cosine", licence="none", source="test")
    save_tuned(tmp_path / "tuned.safetensors", teacher, finetune_settings("full"), tmp_path / "fitted.safetensors")
    assert is_stand_in("swin_b", tmp_path / "tuned.safetensors")
    assert is_stand_in("swin_b")
    assert is_stand_in("swin_b", tmp_path / "fitted.safetensors")
    for name, weights in (
        ("swin_b", "hub"), ("swin_b", tmp_path / "other.pt"), ("dlib_resnet", None), ("iresnet50", None),
        ("mobilefacenet", "random"), ("dlib_resnet+onnx:x.onnx", None),
    ):  # fmt: skip
        assert not is_stand_in(name, weights), name


def test_faces_are_cut_and_reduced_as_the_teacher_wants_them(faces, monkeypatch) -> None:
    teacher = small_teacher()
    crops = crop(faces.images, faces.landmarks, "arcface", 120)
    whole = teacher.embed_faces(faces)
    np.testing.assert_array_equal(whole, teacher.embed(crops))
    low = teacher.embed_faces(faces, 16)
    np.testing.assert_array_equal(low, teacher.embed(reduce(crops, 16, 120)))
    assert not np.allclose(low, whole, atol=1e-3)
    monkeypatch.setattr("teachers.teacher._CHUNK", 5)
    done: list[int] = []
    np.testing.assert_allclose(teacher.embed_faces(faces, batch=4, progress=done.append), whole, atol=1e-5)
    assert done == [4, 1, 4, 1, 2]
    assert teacher.embed_faces(faces.subset([])).shape == (0, 16)


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
