"""What a run hands to the exporters."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from compress import artifacts
from compress.config import load_config
from faces.files import sha256

FACTS = {
    "teacher": {"name": "dlib_resnet", "method": "none", "bootstrap": False, "licence": None, "params": 1, "macs": 2},
    "data": {"public": {"name": "faces", "licence": "unknown"}, "split": {"train_faces": 3}, "test_name": "others"},
    "distill": {"name": "tiny16", "params": 4, "macs": 5},
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
