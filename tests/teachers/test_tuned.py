import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from trainings import people, small_teacher

from faces.cnniqa import CNNIQA
from faces.errors import UserError
from faces.quality import Alpha, Quality
from faces.verification import make_pairs
from teachers import lora, registry
from teachers.fabric import create_fabric
from teachers.finetune import finetune_teacher, resolution_check
from teachers.methods.base import kind_of
from teachers.settings import finetune_settings
from teachers.teacher import Teacher
from teachers.tuned import apply_tuned, digest, save_tuned, tuned_notes


def made_alpha() -> Alpha:
    torch.manual_seed(1)
    quality = Quality(CNNIQA(), "made", lower_better=False)
    quality.centre.fill_(0.0)
    quality.slope.fill_(5.0)
    quality.side.fill_(150)
    return Alpha(quality, 0.6)


def tuned_teacher(method: str) -> tuple[Teacher, torch.nn.Module]:
    """A small teacher as if trained by `method`, and its settings."""
    teacher, how = small_teacher(), finetune_settings(method, rank=2)
    kind = kind_of(method)
    kind.adapt(teacher.backbone, how)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in teacher.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    if kind.needs_alpha:
        teacher.alpha = made_alpha()
    if method != "octuplet":
        teacher.metric, teacher.centre = "cosine", torch.full((teacher.embedding_dim,), 0.1)
    return teacher.eval(), how


@pytest.mark.parametrize("method", ["full", "lora", "petalface", "octuplet", "qgface"])
def test_what_was_saved_embeds_the_same(method, tmp_path) -> None:
    teacher, how = tuned_teacher(method)
    faces, path = people(3, 2), tmp_path / "teacher.safetensors"
    save_tuned(path, teacher, how, None)
    again = apply_tuned(small_teacher(), path)
    expected = teacher.embed_faces(faces)
    np.testing.assert_array_equal(again.embed_faces(faces), expected)
    assert np.abs(small_teacher().embed_faces(faces) - expected).max() > 1e-3
    assert again.metric == teacher.metric
    assert f"fine-tuned by {method}" in again.source
    assert not again.backbone.training
    assert tuned_notes(path)["settings"]["method"] == method


def test_adapters_are_stored_alone(tmp_path) -> None:
    teacher, how = tuned_teacher("petalface")
    save_tuned(tmp_path / "t.safetensors", teacher, how, None)
    names = [name for name in load_file(tmp_path / "t.safetensors") if name.startswith("backbone.")]
    assert names
    assert all(lora.is_adapter(name) for name in names)


def test_adapters_of_other_frozen_weights_are_refused(tmp_path) -> None:
    teacher, how = tuned_teacher("lora")
    save_tuned(tmp_path / "t.safetensors", teacher, how, "base.safetensors")
    other = small_teacher()
    with torch.no_grad():
        other.backbone.stem.weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(UserError, match=r"other frozen weights .* made from .*base\.safetensors"):
        apply_tuned(other, tmp_path / "t.safetensors")
    with pytest.raises(UserError, match="fine-tuned from dlib_resnet, not mobilefacenet"):
        apply_tuned(small_teacher("mobilefacenet"), tmp_path / "t.safetensors")


def test_damaged_files(tmp_path) -> None:
    teacher, how = tuned_teacher("petalface")
    path, bad = tmp_path / "t.safetensors", tmp_path / "bad.safetensors"
    save_tuned(path, teacher, how, None)
    bad.write_bytes(path.read_bytes()[:-50])
    assert tuned_notes(bad) is None
    with pytest.raises(UserError, match="cut short"):
        apply_tuned(small_teacher(), bad)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        notes = file.metadata()
    state = load_file(path)
    first = next(name for name in state if name.endswith("up.weight"))
    for change in ({first: torch.full_like(state[first], torch.nan)}, {first: state[first][:1]}):
        save_file(state | change, bad, notes)
        with pytest.raises(UserError, match=r"not finite|other adapters"):
            apply_tuned(small_teacher(), bad)
    save_file({name: value for name, value in state.items() if not name.startswith("alpha.t")}, bad, notes)
    with pytest.raises(UserError, match="alpha is damaged"):
        apply_tuned(small_teacher(), bad)


def test_adapters_of_random_weights_find_those_of_their_seed(tmp_path) -> None:
    teacher = registry.create_single("mobilefacenet", "random", seed=5)
    kind_of("lora").adapt(teacher.backbone, finetune_settings("lora", rank=1))
    save_tuned(tmp_path / "t.safetensors", teacher, finetune_settings("lora", rank=1), "random", base_seed=5)
    again = registry.create_single("mobilefacenet", tmp_path / "t.safetensors")
    faces = people(1, 2)
    np.testing.assert_array_equal(again.embed_faces(faces), teacher.eval().embed_faces(faces))


def test_create_teacher_takes_a_tuned_file(tmp_path) -> None:
    teacher = registry.create_single("dlib_resnet")
    how = finetune_settings("lora", rank=1)
    kind_of("lora").adapt(teacher.backbone, how)
    with torch.no_grad():
        for name, parameter in teacher.backbone.named_parameters():
            if name.endswith("up.weight"):
                parameter.normal_(0, 0.01)
    save_tuned(tmp_path / "t.safetensors", teacher, how, None)
    again = registry.create_teacher("dlib_resnet", tmp_path / "t.safetensors")
    assert again.licence == teacher.licence
    faces = people(1, 2)
    np.testing.assert_array_equal(again.embed_faces(faces), teacher.eval().embed_faces(faces))


@pytest.mark.parametrize(
    ("name", "method"),
    [("swin_b", "petalface"), ("face_transformer", "petalface"), ("timm:vit_base_patch16_224", "petalface"),
     ("dlib_resnet", "octuplet"), ("iresnet50", "octuplet"), ("mobilefacenet", "octuplet"),
     ("onnx:some.onnx", "none"), ("dlib_resnet+swin_b", "none")],
)  # fmt: skip
def test_the_default_method(name, method) -> None:
    assert registry.default_method(name) == method


def test_what_was_fine_tuned_before_is_not_by_default(tmp_path, monkeypatch) -> None:
    teacher, how = tuned_teacher("octuplet")
    save_tuned(tmp_path / "t.safetensors", teacher, how, None)
    save_file({"layers.0.qkv.trainable_lora_down.weight": torch.zeros(8, 4)}, tmp_path / "swin.safetensors")
    save_file({"layers.0.qkv.weight": torch.zeros(8, 4)}, tmp_path / "plain.safetensors")
    assert registry.default_method("dlib_resnet", tmp_path / "t.safetensors") == "none"
    assert registry.default_method("swin_b", tmp_path / "swin.safetensors") == "none"
    assert registry.default_method("swin_b", "hub") == "none"
    assert registry.default_method("swin_b", tmp_path / "plain.safetensors") == "petalface"
    assert registry.default_method("dlib_resnet", tmp_path / "nowhere") == "octuplet"


@pytest.mark.parametrize("base", [None, "hub", "random"])
def test_a_whole_tuned_file_keeps_licence_and_source(tmp_path, base) -> None:
    teacher, how = registry.create_single("dlib_resnet"), finetune_settings("octuplet")
    save_tuned(tmp_path / "t.safetensors", teacher, how, base)
    assert tuned_notes(tmp_path / "t.safetensors")["base"] == base
    again = registry.create_single("dlib_resnet", tmp_path / "t.safetensors")
    assert again.licence == teacher.licence
    assert again.source == f"{base or 'its default weights'}, fine-tuned by octuplet (600 steps)"


def test_adapters_made_in_float64_belong_to_the_float32_weights(tmp_path) -> None:
    how, fabric = finetune_settings("lora", steps=2, batch=8, rank=2), create_fabric(precision="64")
    teacher, faces = small_teacher(), people()
    check = resolution_check(faces, make_pairs(faces.identities, 0, 40))
    finetune_teacher(teacher, faces, how, 0, tmp_path, fabric, base=None, check=check, checks=1)
    again = apply_tuned(small_teacher(), tmp_path / "teacher.safetensors")
    np.testing.assert_allclose(again.embed_faces(faces), teacher.embed_faces(faces), atol=1e-4)


def test_a_digest_does_not_hang_on_the_precision_that_the_cpu_is_fast_in() -> None:
    values = torch.randn(5).to(torch.bfloat16)
    assert digest({"a": values}) == digest({"a": values.float()}) != digest({"a": values.float() + 1})
