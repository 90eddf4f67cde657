"""Packing faces into tar shards: the round trip, other readers, stops and repeats, the command."""

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from faces import shards
from faces.align import crop
from faces.errors import UserError
from faces.files import sha256
from faces.sources import open_faces
from faces.sources.record import decode


def _files(folder):
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.suffix in {".tar", ".json"}}


def _people(root, count=12, size=112):
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (root / f"p {i // 3}.x").mkdir(parents=True, exist_ok=True)
        image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        (root / f"p {i // 3}.x/ä.{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return root


def _run(*arguments):
    return CliRunner().invoke(shards.main, [str(one) for one in arguments])


@pytest.mark.parametrize(("suffix", "worst"), [("png", 0), ("jpg", 2.5), ("webp", 2.5)])
def test_packed_faces_are_read_back(tmp_path, noise_faces, suffix, worst):
    faces = replace(noise_faces([0, 0, 1, 1, -1, 2, 2, -1]), alone={7: "cy"})
    faces.images[:] = np.stack([cv2.GaussianBlur(image, (0, 0), 6) for image in faces.images])
    faces.landmarks[2, 3:] = np.nan
    paths = shards.pack(faces, tmp_path / "out", per_shard=3, suffix=suffix)
    assert [path.name for path in paths] == [f"faces-0000{i}.tar" for i in range(3)]
    again = open_faces(str(tmp_path / "out"))
    assert len(again) == 8
    order = [int(key.split("/")[1].split("-")[0]) for key in again.keys]
    assert sorted(order) == list(range(8))
    assert order != sorted(order)
    assert np.abs(again.images.astype(int) - faces.images[order]).mean() <= worst
    np.testing.assert_allclose(again.landmarks, faces.landmarks[order], atol=1e-4)
    names = [None if i < 0 else faces.names[i] for i in faces.identities]
    assert [None if i < 0 else again.names[i] for i in again.identities] == [names[i] for i in order]
    assert again.alone == {order.index(7): "cy"}
    assert shards.check(tmp_path / "out") == {"shards": 3, "faces": 8, "identities": 3, "unlabelled": 2}


def test_shards_of_other_images_are_not_continued(tmp_path, noise_faces):
    faces = noise_faces([0, 0, 1, 1])
    shards.pack(faces, tmp_path, per_shard=2)
    shards.pack(faces, tmp_path, per_shard=2)
    with pytest.raises(UserError, match="other faces or settings"):
        shards.pack(replace(faces, images=255 - faces.images), tmp_path, per_shard=2)


def test_one_other_photo_among_many_is_seen_and_the_way_to_them_does_not_matter(tmp_path):
    source = _people(tmp_path / "people", 30)
    make = ("make", "--aligned", "--format", "png", "--out", tmp_path / "out", "--data")
    assert _run(*make, source).exit_code == 0
    before = _files(tmp_path / "out")
    again = _run(*make, f"{source}/../people/")
    assert (again.exit_code, _files(tmp_path / "out")) == (0, before), again.output
    photo = source / "p 3.x/ä.10.png"
    photo.write_bytes(cv2.imencode(".png", 255 - cv2.imread(str(photo)))[1].tobytes())
    assert "holds shards of other faces or settings" in _run(*make, source).stderr


def test_people_of_one_name_in_two_sets_are_told(tmp_path):
    photos = sorted(_people(tmp_path / "all", 12).rglob("*.png"))
    for i, photo in enumerate(photos):
        place = tmp_path / "ab"[i // 6] / f"{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        photo.rename(place / f"{i}.png")
    done = _run("make", "--aligned", "--out", tmp_path / "out", "--data", tmp_path / "a", "--data", tmp_path / "b")
    assert "2 identity names occur in several --data parts: each counts as one person" in done.stderr


def test_shards_are_not_put_among_the_photos(tmp_path):
    source = _people(tmp_path / "people")
    done = _run("make", "--data", source, "--aligned", "--out", f"{source}/../people")
    assert (done.exit_code, "is or lies in one of --data" in done.stderr) == (2, True)
    assert _run("make", "--data", source, "--aligned", "--out", source / "shards").exit_code == 2
    assert not list(source.glob("*.tar"))


def test_the_webdataset_library_reads_the_shards(tmp_path, noise_faces):
    webdataset = pytest.importorskip("webdataset")
    faces = noise_faces([0, 0, 1, 1, -1], prefix="a b/c.d")
    paths = shards.pack(faces, tmp_path, per_shard=3, suffix="png")
    samples = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode("rgb8"))
    assert len(samples) == 5
    for sample in samples:
        index = int(sample["__key__"].split("-")[0])
        assert sample["__key__"] == f"{index:08d}-a-b-c-d-{index}"
        np.testing.assert_array_equal(sample["png"], faces.images[index])
        assert sample["json"]["key"] == faces.keys[index]
        person = faces.identities[index]
        assert sample["json"]["identity"] == (None if person < 0 else faces.names[person])
        np.testing.assert_allclose(sample["json"]["landmarks"], faces.landmarks[index], atol=1e-4)


def test_shards_that_the_webdataset_library_wrote_are_read(tmp_path, noise_faces):
    webdataset = pytest.importorskip("webdataset")
    faces = noise_faces([0, 0, 1, 1])
    with webdataset.ShardWriter(f"{tmp_path}/part-%04d.tar", maxcount=2, verbose=0) as writer:
        for i, image in enumerate(faces.images):
            note = {"identity": faces.names[faces.identities[i]], "landmarks": faces.landmarks[i].tolist()}
            writer.write({"__key__": f"{i:04d}", "png": image, "json": note})
    again = open_faces(str(tmp_path), lazy=True)
    np.testing.assert_array_equal(again.images[:], faces.images)
    assert again.names == faces.names


@pytest.mark.parametrize("size", [64, 112, 200])
def test_another_size_shows_the_same_face(tmp_path, noise_faces, size):
    faces = noise_faces([0, 0, 1, 1])
    faces.images[:] = np.stack([cv2.GaussianBlur(image, (0, 0), 6) for image in faces.images])
    (path,) = shards.pack(faces, tmp_path, size=size, suffix="png")
    with tarfile.open(path) as archive:
        image = decode(archive.extractfile(archive.getmembers()[0]).read())
    assert image.shape == (size, size, 3)
    again = open_faces(str(tmp_path))
    order = [int(key.split("/")[1].split("-")[0]) for key in again.keys]
    before = crop(faces.images[order], faces.landmarks[order], "arcface")
    after = crop(again.images, again.landmarks, "arcface")
    assert np.abs(before.astype(int) - after)[:, 4:-4, 4:-4].mean() < 2


def test_shards_are_the_same_bytes_each_time_and_another_seed_is_another_order(tmp_path, noise_faces):
    faces = noise_faces([0, 0, 1, 1, 2, 2, -1])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        shards.pack(faces, tmp_path / name, per_shard=3, seed=seed)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    assert _files(tmp_path / "a") != _files(tmp_path / "c")
    with pytest.raises(UserError, match="holds shards of other faces or settings: choose another --out"):
        shards.pack(faces, tmp_path / "a", per_shard=3, seed=1)
    with pytest.raises(UserError, match="holds shards of other faces"):
        shards.pack(faces.subset(range(6)), tmp_path / "a", per_shard=3)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/mine.tar").touch()
    with pytest.raises(UserError, match="were not packed here"):
        shards.pack(faces, tmp_path / "d")


def test_a_finished_shard_is_not_written_again(tmp_path, noise_faces):
    faces = noise_faces([0, 0, 1, 1, 2, 2, -1])
    paths = shards.pack(faces, tmp_path, per_shard=3)
    before = _files(tmp_path)
    kept = paths[0].stat()
    paths[1].unlink()
    (tmp_path / ".faces-00001.abcdefgh.tmp.tar").write_bytes(b"half")
    assert len(open_faces(str(tmp_path))) == 4
    counted = []
    shards.pack(faces, tmp_path, per_shard=3, progress=counted.append)
    assert _files(tmp_path) == before
    assert sum(counted) == 7
    assert (paths[0].stat().st_ino, paths[0].stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)


def test_a_killed_packing_continues_and_leaves_no_half_shard(tmp_path):
    source = _people(tmp_path / "people", 60)
    command = [sys.executable, "-m", "faces.shards", "make", "--data", source, "--aligned", "--format", "png"]
    command = [str(one) for one in (*command, "--size", "512", "--per-shard", "10", "--out")]
    out = tmp_path / "out"
    process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        waited = time.monotonic()
        while not (out / "faces-00001.tar").exists() and time.monotonic() - waited < 60:
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    done = sorted(path.name for path in out.glob("faces-*.tar"))
    assert 2 <= len(done) < 6
    with pytest.raises(UserError, match="missing or not as planned"):
        shards.check(out)
    assert len(open_faces(str(out))) == 10 * len(done)
    made = {name: (out / name).stat().st_mtime_ns for name in done}
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert {name: (out / name).stat().st_mtime_ns for name in done} == made
    assert shards.check(out)["faces"] == 60
    assert not list(out.glob("*.tmp*"))
    assert os.stat(out / "faces-00005.tar").st_mode & 0o777 == os.stat(out / "shards.json").st_mode & 0o777


def test_the_command_packs_checks_and_says_what_it_left_out(tmp_path):
    source = _people(tmp_path / "people")
    (source / "p 0.x/broken.jpg").write_bytes(b"no image")
    (source / "p 0.x/copy.png").write_bytes((source / "p 0.x/ä.0.png").read_bytes())
    out = tmp_path / "out"
    done = _run("make", "--data", source, "--aligned", "--out", out, "--per-shard", 5)
    assert done.exit_code == 0, done.output
    assert f"{source}: 1 x unreadable image" in done.stderr
    assert f"{source}: 1 x exact duplicate" in done.stderr
    assert f"12 faces of 4 people in 3 shards in {out}" in done.stdout
    done = _run("check", out)
    assert (done.exit_code, done.stdout) == (0, "12 faces of 4 people in 3 shards, 0 unlabelled\n")
    again = open_faces(str(out))
    assert set(again.names) == {f"p {i}.x" for i in range(4)}
    plan = json.loads((out / "shards.json").read_text())
    assert plan["shards"] == {"faces-00000.tar": 5, "faces-00001.tar": 5, "faces-00002.tar": 2}


def test_two_sources_are_packed_into_one_set(tmp_path, noise_faces):
    shards.pack(noise_faces([0, 0, 1, 1]), tmp_path / "one")
    source = _people(tmp_path / "people")
    done = _run(
        "make", "--data", tmp_path / "one", "--data", source, "--aligned", "--out", tmp_path / "out", "--colour", "rgb"
    )
    assert "16 faces of 6 people in 1 shards" in done.stdout, done.output


def test_bgr_sources_are_told_and_turned(tmp_path):
    root = tmp_path / "people"
    for i in range(12):
        coarse = np.random.default_rng(i).integers(40, 150, (8, 8, 3)) + np.array([60, 0, 0])
        (root / f"{i // 3}").mkdir(parents=True, exist_ok=True)
        # OpenCV takes BGR: given RGB, as a careless pipeline does, the file holds BGR.
        image = cv2.resize(coarse.astype(np.uint8), (112, 112))
        (root / f"{i // 3}/{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    done = _run("make", "--data", root, "--aligned", "--out", tmp_path / "a")
    assert "looks like BGR" in done.stderr
    done = _run("make", "--data", root, "--aligned", "--out", tmp_path / "b", "--colour", "bgr")
    assert "looks like BGR" not in done.stderr
    assert open_faces(str(tmp_path / "a")).integrity.warnings
    assert not open_faces(str(tmp_path / "b")).integrity.warnings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("make", "--data", "none such", "--out", "x"), "no face data at 'none such': give `orl`"),
        (("make", "--data", "orl", "--out", "x", "--format", "gif"), "Invalid value for '--format'"),
        (("make", "--data", "orl", "--out", "x", "--size", "4"), "Invalid value for '--size'"),
        (("make", "--data", "orl", "--out", "x", "--seed", str(2**32)), "Invalid value for '--seed'"),
        (("make", "--data", "orl", "--out", __file__), "is a file: choose another --out"),
        (("make", "--out", "x"), "Missing option '--data'"),
        (("check", "none such"), "no .tar shard in none such"),
    ],
)
def test_mistakes_are_one_message(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    done = _run(*arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "image", "gone", "plan"])
def test_check_finds_damage(tmp_path, noise_faces, damage):
    paths = shards.pack(noise_faces([0, 0, 1, 1]), tmp_path, per_shard=2, suffix="png")
    data = bytearray(paths[0].read_bytes())
    if damage == "cut":
        paths[0].write_bytes(data[:5000])
    elif damage == "image":
        data[512:540] = bytes(28)
        paths[0].write_bytes(data)
    elif damage == "gone":
        paths[0].unlink()
    else:
        (tmp_path / "shards.json").write_text('{"shards": [1]}')
    said = {
        "cut": "cannot be read as a tar shard",
        "image": "no readable image",
        "gone": "1 of 2 shards in .* missing or not as planned, e.g. faces-00000.tar",
        "plan": "is no plan of shards",
    }
    done = _run("check", tmp_path)
    assert done.exit_code == 2
    with pytest.raises(UserError, match=said[damage]):
        shards.check(tmp_path)
