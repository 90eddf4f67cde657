import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import export
from export.embed import embed_command, embed_folder, find_images
from export.runtimes import Artifact
from export.sidecar import Alpha
from faces.align import crop
from faces.degrade import reduce
from faces.errors import UserError
from faces.sources import open_faces, orl

WALL = b"P5 100 100 255\n" + bytes([128]) * 10_000


@pytest.fixture
def photos(tmp_path):
    """Six faces at several depths, one file that is no image, one without a face, and files to leave alone."""
    folder = tmp_path / "photos"
    records = {record.key: record.data for record in orl.read()}
    places = ("a.pgm", "z.PGM", "deep/er/b.pgm", "deep/c.pgm", "ä ö.pgm", "twice.pgm")
    for place, key in zip(places, ("s1/1", "s2/1", "s3/1", "s4/1", "s5/1", "s1/1"), strict=True):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(records[f"orl/{key}"])
    (folder / "deep/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (folder / "wall.pgm").write_bytes(WALL)
    (folder / "notes.txt").write_text("no image")
    (folder / "._a.pgm").write_bytes(b"of a Mac")
    (folder / ".cache").mkdir()
    (folder / ".cache/a.pgm").write_bytes(records["orl/s1/1"])
    (folder / "folder.jpg").mkdir()
    return folder


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """s1/1 to s5/1 of ORL as the pipeline has them at 16 px, with torch."""
    folder = tmp_path_factory.mktemp("people")
    for record in orl.read():
        _, person, image = record.key.split("/")
        if person in ("s1", "s2", "s3", "s4", "s5") and image == "1":
            (folder / person).mkdir()
            (folder / person / "1.pgm").write_bytes(record.data)
    faces = open_faces(str(folder))
    assert [key[-8:-4] for key in faces.keys] == ["s1/1", "s2/1", "s3/1", "s4/1", "s5/1"]
    return reduce(crop(faces.images, faces.landmarks, "arcface"), None, 16)


def _run(*arguments):
    return CliRunner().invoke(embed_command, [str(one) for one in arguments])


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("name", ["student.onnx", "student.tflite"])
def test_a_folder_with_a_corrupt_and_a_faceless_image(exported, photos, tmp_path, student, embed, seen, name, batch):
    out = tmp_path / "new/faces.npz"
    done = _run(exported / name, photos, "--out", out, "--batch", batch)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out}: 6 embedded; no face found: 1 (wall.pgm); unreadable: 1 (deep/broken.jpg)\n"
    assert list(out.parent.iterdir()) == [out]
    with np.load(out, allow_pickle=False) as file:
        assert sorted(file.files) == ["embeddings", "keys"]
        embeddings, keys = file["embeddings"], file["keys"].tolist()
    assert keys == ["a.pgm", "deep/c.pgm", "deep/er/b.pgm", "twice.pgm", "z.PGM", "ä ö.pgm"]
    assert (embeddings.shape, embeddings.dtype) == ((6, 128), np.float32)
    assert np.allclose(embeddings[0], embeddings[3], atol=1e-6)
    assert np.abs(embeddings - embed(student("tiny16"), seen[[0, 3, 2, 0, 1, 4]])).max() < 0.02


def test_aligned_takes_every_image(exported, photos):
    artifact = export.load(exported / "student.onnx")
    calls = []
    found = embed_folder(artifact, photos, "no detector is asked", aligned=True, progress=calls.append)
    assert (len(found.keys), found.missed, found.unreadable) == (7, [], ["deep/broken.jpg"])
    assert sum(calls) == 8


def test_folders_without_faces(exported, photos, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "e.npz"
    for folder, told in ((empty, "no images in"), (tmp_path / "none", "no such folder"), (photos / "a.pgm", "no such")):
        done = _run(exported / "student.onnx", folder, "--out", out)
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        assert told in done.output
    (empty / "wall.pgm").write_bytes(WALL)
    (empty / "cut.png").write_bytes(b"")
    done = _run(exported / "student.onnx", empty, "--out", out)
    assert done.exit_code == 2
    assert "none of the 2 images" in done.output
    assert "no face found: 1 (wall.pgm); unreadable: 1 (cut.png)" in done.output
    assert not out.exists()


def test_wrong_options(exported, photos, tmp_path):
    done = _run(exported / "student.onnx", photos, "--out", tmp_path / "e.csv")
    assert (done.exit_code, done.output) == (2, f"error: --out is written as .npz; give --out {tmp_path / 'e.npz'}\n")
    done = _run(exported / "student.onnx", photos, "--out", photos / "a.pgm" / "e.npz")
    assert (done.exit_code, "a.pgm is a file: choose another --out" in done.output) == (2, True)
    done = _run(tmp_path / "none.onnx", photos, "--out", tmp_path / "e.npz")
    assert done.exit_code == 2
    assert "none.onnx: no such file" in done.output
    done = _run(exported / "student.onnx", photos, "--out", tmp_path / "e.npz", "--detector", "magic")
    assert (done.exit_code, "unknown detector 'magic'" in done.output) == (2, True)


def test_many_misses_are_counted_and_few_named(exported, photos, tmp_path):
    for i in range(5):
        (photos / f"wall{i}.pgm").write_bytes(WALL)
    done = _run(exported / "student.onnx", photos, "--out", tmp_path / "e.npz")
    assert "no face found: 6 (wall.pgm, wall0.pgm, wall1.pgm, ...);" in done.output


def test_a_file_that_cannot_be_opened_is_unreadable(exported, photos, monkeypatch):
    kept = Path.read_bytes

    def read(path):
        if path.name == "z.PGM":
            raise PermissionError(13, "Permission denied", str(path))
        return kept(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    found = embed_folder(export.load(exported / "student.onnx"), photos)
    assert found.unreadable == ["deep/broken.jpg", "z.PGM"]


def test_names_that_are_no_text(exported, photos, tmp_path):
    try:
        (photos / os.fsdecode(b"\xff.pgm")).write_bytes(WALL)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    done = _run(exported / "student.onnx", photos, "--out", tmp_path / "e.npz")
    assert (done.exit_code, "no face found: 2 (wall.pgm, " in done.output) == (0, True)


def test_embeddings_that_are_not_finite_are_refused(exported, photos, monkeypatch):
    artifact = export.load(exported / "student.onnx")
    monkeypatch.setattr(artifact, "embed", lambda images, batch: np.full((len(images), 128), np.nan, np.float32))
    with pytest.raises(UserError, match=r"the embedding of a\.pgm is not finite"):
        embed_folder(artifact, photos)


def test_a_file_that_takes_an_alpha_is_refused_before_any_face_is_looked_for(exported, photos):
    alpha = Alpha(policy="input", value=None, input="alpha", source="", price=())
    contract = export.load(exported / "student.onnx").sidecar.model_copy(update={"alpha": alpha})
    with pytest.raises(UserError, match=r"student\.onnx takes an alpha with each face"):
        embed_folder(SimpleNamespace(sidecar=contract), photos, "no detector is asked")


def test_a_file_that_missed_its_gate_is_not_used_in_silence(exported, photos, tmp_path, monkeypatch):
    artifact = export.load(exported / "student.onnx")
    parity = artifact.sidecar.parity.model_copy(update={"passed": False, "reason": "far off"})
    artifact = Artifact(artifact.path, artifact.sidecar.model_copy(update={"parity": parity}))
    monkeypatch.setattr("export.embed.runtimes.load", lambda path: artifact)
    done = _run("x.onnx", photos, "--aligned", "--out", tmp_path / "e.npz")
    assert done.exit_code == 0, done.output
    said = "caution: student.onnx differs from its model and was kept on request: far off"
    assert done.stdout.splitlines()[1:] == [said]


def test_images_are_found_in_order_and_hidden_ones_left_out(photos):
    found = [path.relative_to(photos).as_posix() for path in find_images(photos)]
    assert found == [
        "a.pgm", "deep/broken.jpg", "deep/c.pgm", "deep/er/b.pgm", "twice.pgm", "wall.pgm", "z.PGM", "ä ö.pgm",
    ]  # fmt: skip
