"""What a run hands to the exporters."""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from compress import artifacts
from compress.config import load_config
from export.kit import read_kit, write_kit
from faces.errors import UserError
from faces.files import sha256

FACTS = {
    "teacher": {"name": "dlib_resnet", "method": "none", "bootstrap": False, "licence": None, "params": 1, "macs": 2},
    "data": {"public": {"name": "faces", "licence": "unknown"}, "split": {"train_faces": 3}, "test_name": "others"},
    "distill": {"name": "tiny16", "params": 4, "macs": 5, "mode": "sc"},
}


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """kit("key=value"...) of a run that was started in `tmp_path`; from then on the working folder is another."""
    (tmp_path / "student.safetensors").write_bytes(b"weights")

    def made(*settings):
        monkeypatch.chdir(tmp_path)
        run = SimpleNamespace(
            facts=FACTS.__getitem__, config=load_config("quick", None, {}, settings), path=tmp_path.joinpath
        )
        found = artifacts._kit(run)
        monkeypatch.chdir("/")
        return found

    return made


def test_the_users_files_are_found_from_any_folder(tmp_path, kit):
    for name in ("pairs.csv", "teacher.safetensors"):
        (tmp_path / name).write_text("key_a,key_b,same,fold\n")
    found = kit("data.pairs=pairs.csv", "teacher.weights=teacher.safetensors")
    assert (Path("runs/one") / found.pairs).samefile(tmp_path / "pairs.csv")
    assert (Path("runs/one") / found.teacher_weights).samefile(tmp_path / "teacher.safetensors")
    assert kit("teacher.weights=hub").teacher_weights == "hub"
    assert kit().teacher_weights is None


def test_the_student_is_named_by_its_hash(tmp_path, kit):
    assert kit().student_sha256 == sha256(tmp_path / "student.safetensors")


def test_first_weights_bring_their_terms_along(kit):
    assert kit().data.licence == "unknown"
    first = kit("distill.weights=/private/start.safetensors").data.licence
    assert first == "unknown; on top the terms of the faces that its first weights (start.safetensors) saw"


def test_a_name_that_is_no_utf8_can_be_read_back(tmp_path, kit, monkeypatch):
    odd = os.fsdecode(b"f\xff")
    monkeypatch.setitem(FACTS, "data", FACTS["data"] | {"public": {"name": odd, "licence": odd}, "test_name": odd})
    (tmp_path / f"{odd}.csv").write_text("key_a,key_b,same,fold\n")
    made = kit(f"data.pairs={odd}.csv")
    write_kit(tmp_path, made)
    found = read_kit(tmp_path)
    assert found == made
    assert (found.test_name, found.data.name) == ("f?", "f?")
    assert Path(found.pairs).is_file()
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_kit(tmp_path)


@pytest.mark.parametrize(("teacher", "mirror"), [(False, False), (True, False), (False, True)])
def test_a_teacher_exported_before_does_not_stay_beside_another_run(tmp_path, kit, monkeypatch, teacher, mirror):
    (tmp_path / "mine.onnx").write_bytes(b"the user's own")
    for name in ("student.tflite", "student-mirror.onnx", "teacher.onnx", "teacher-fp16.onnx"):
        (tmp_path / name).write_bytes(b"old")
        (tmp_path / f"{name}.json").write_text("{}")
    made = []

    def export_model(subject, folder, how):
        # Nothing of before lies there while the files are made.
        made.append(sorted(file.name for file in folder.glob("*.onnx")))
        (folder / f"{subject}.onnx").write_bytes(b"new")
        parity = {"cosine_min": 1.0}
        return [{"model": subject, "path": f"{subject}.onnx", "bytes": 3, "parity": parity}], []

    monkeypatch.setattr(artifacts, "export_model", export_model)
    monkeypatch.setattr(artifacts, "write_kit", lambda *_: None)
    bench = SimpleNamespace(
        student=lambda mirror: Subject("student-mirror" if mirror else "student"),
        teacher=lambda alpha: Subject("teacher"),
    )
    monkeypatch.setattr(artifacts, "Bench", lambda *_: bench)
    config = load_config("quick", None, {"export.teacher": teacher, "export.mirror": mirror}, ())
    run = SimpleNamespace(
        facts=FACTS.__getitem__, config=config, path=tmp_path.joinpath, folder=tmp_path,
        progress=lambda *_: contextlib.nullcontext(), log=SimpleNamespace(info=None),
    )  # fmt: skip
    artifacts.run(run)
    assert made == [["mine.onnx"], ["mine.onnx", "student.onnx"]][: 1 + teacher + mirror]
    assert (tmp_path / "teacher.onnx").exists() is teacher
    assert (tmp_path / "student-mirror.onnx").exists() is mirror
    assert not (tmp_path / "student.tflite").exists()


class Subject(str):
    """As much of a model to export as the stage itself reads: its name."""

    card = SimpleNamespace(alpha=None)
