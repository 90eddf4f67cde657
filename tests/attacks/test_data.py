"""Hostile face data: shards, notes and images that are broken or made to hurt. A message each, never a crash."""

import gzip
import io
import json
import random
import struct
import tarfile
import zlib

import cv2
import numpy as np
import pytest

from faces.dataset import Faces
from faces.errors import UserError
from faces.sources import open_faces
from faces.sources.record import decode
from faces.verification import read_pairs

_LANDMARKS = [[46, 58], [82, 59], [64, 78], [50, 97], [79, 98]]


def _png(seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.resize(coarse, (128, 128)))[1].tobytes()


def _shard(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def _members(path):
    with tarfile.open(path) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


@pytest.fixture
def good(tmp_path):
    files = []
    for i in range(4):
        note = json.dumps({"identity": "p", "landmarks": _LANDMARKS}).encode()
        files += [(f"{i}.png", _png(i)), (f"{i}.json", note)]
    return _shard(tmp_path / "good.tar", files)


def test_a_shard_cut_short_anywhere_is_refused(good, tmp_path):
    data = good.read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    assert len(open_faces(str(good))) == 4
    rng = random.Random(0)
    boundaries = range(512, end + 1, 512)
    for length in (0, 1, 100, 511, *rng.sample(boundaries, 25), end, *(rng.randrange(end) for _ in range(25))):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(UserError, match="cannot be read as a tar shard"):
            open_faces(str(tmp_path / "cut.tar"))


def test_a_broken_header_does_not_end_the_shard_silently(good, tmp_path):
    data = bytearray(good.read_bytes())
    with tarfile.open(good) as archive:
        third = archive.getmembers()[4].offset
    data[third + 148 : third + 156] = b"\xff" * 8
    (tmp_path / "broken.tar").write_bytes(data)
    with pytest.raises(UserError, match=f"no end mark at byte {third}"):
        open_faces(str(tmp_path / "broken.tar"))


def test_flipped_bytes_give_faces_or_a_message(good, tmp_path):
    data, rng, told = good.read_bytes(), random.Random(1), 0
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 5, 200))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        (tmp_path / "flipped.tar").write_bytes(broken)
        try:
            assert 0 < len(open_faces(str(tmp_path / "flipped.tar"))) <= 4
        except UserError as mistake:
            told += "flipped" in str(mistake)
    assert told > 5


@pytest.mark.parametrize("data", [b"", b"text", bytes(2000), b"\x1f\x8b\x08\0garbage", b"BZh9garbage" * 9,
                                  gzip.compress(bytes(10**6))[:200], b"\xfd7zXZ\0garbage" * 9])  # fmt: skip
def test_what_is_no_tar_is_refused(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.tar"):
        open_faces(str(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    "note",
    [
        b"{",
        b"[1]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"identity": ["a"]}',
        b'{"identity": {"a": 1}}',
        b'{"identity": 1.5}',
        b'{"identity": 5.0}',
        b'{"landmarks": [[1, 2]]}',
        b'{"landmarks": "text"}',
        b'{"identity": true}',
        b'{"landmarks": [[1, 2], [3, 4], [Infinity, 2], [1, 2], [1, 2]]}',
        b'{"landmarks": [[1, 2], [3, 4], [1e300, 2], [1, 2], [1, 2]]}',
        b'{"landmarks": [[-Infinity, 2], [3, 4], [1, 2], [1, 2], [1, 2]]}',
        b'{"landmarks": [["a", "b"], [1, 2], [1, 2], [1, 2], [1, 2]]}',
        b'{"landmarks": [[1' + b"0" * 400 + b", 2], [1, 2], [1, 2], [1, 2], [1, 2]]}",
    ],
)
def test_a_malformed_note_is_counted_and_the_others_are_read(tmp_path, good, note):
    bad = [("bad.png", _png(9)), ("bad.json", note)]
    faces = open_faces(str(_shard(tmp_path / "s.tar", [*bad, *_members(good)])))
    assert len(faces) == 4
    assert faces.integrity.skipped == {"malformed note": 1}


def test_two_images_of_one_key_are_counted_and_neither_is_read(tmp_path, good):
    two = [("two.png", _png(9)), ("two.webp", _png(8)), ("two.json", b"{}")]
    faces = open_faces(str(_shard(tmp_path / "s.tar", [*two, *_members(good)])))
    assert len(faces) == 4
    assert faces.integrity.skipped == {"two images of one key": 1}


def test_the_hidden_notes_of_macos_are_no_faces(tmp_path, good):
    members = [(name, data) for one in _members(good) for name, data in (("._" + one[0], b"\0\5\26\7"), one)]
    faces = open_faces(str(_shard(tmp_path / "s.tar", members)))
    assert (len(faces), faces.integrity.skipped) == (4, open_faces(str(good)).integrity.skipped)


def test_a_key_that_follows_itself_is_counted(tmp_path, good):
    first = _members(good)[:2]
    faces = open_faces(str(_shard(tmp_path / "s.tar", [*first, *_members(good)])))
    assert (len(faces), faces.integrity.skipped["key that occurred already"]) == (4, 1)


def test_a_note_without_its_face_is_counted(tmp_path, good):
    faces = open_faces(str(_shard(tmp_path / "s.tar", [("set.json", b"[]"), *_members(good), ("0.json", b"{}")])))
    assert len(faces) == 4
    assert faces.integrity.skipped == {"note without its face beside it": 2}


@pytest.mark.parametrize("first", [".png", ".json"])
def test_a_shard_that_keeps_notes_and_faces_apart_is_refused(tmp_path, good, first):
    files = sorted(_members(good), key=lambda file: not file[0].endswith(first))
    with pytest.raises(UserError, match=r"s\.tar: 0\.json is not beside its face: .* are adjacent"):
        open_faces(str(_shard(tmp_path / "s.tar", files)), aligned=True)


@pytest.mark.parametrize("value", ["NaN", "null", "-7", "900000"])
def test_landmarks_that_are_no_place_are_counted(tmp_path, good, value):
    points = ", ".join([f"[{value}, {value}]"] * 5)
    note = f'{{"identity": "p", "landmarks": [{points}]}}'.encode()
    files = [("bad.png", _png(9)), ("bad.json", note), *_members(good)]
    faces = open_faces(str(_shard(tmp_path / "s.tar", files)))
    assert len(faces) == 4
    assert faces.integrity.skipped == {"landmarks without two eyes in the image": 1}


def test_a_sparse_member_that_claims_terabytes_is_refused(tmp_path):
    member = tarfile.TarInfo("a.png")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"00000000000\0"
    header[483:495] = b"\x80" + (2**44).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "s.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(UserError, match="claims 17592186044416 bytes"):
        open_faces(str(tmp_path / "s.tar"))


def test_links_and_devices_in_a_shard_are_left_out(tmp_path, good):
    files = _members(good)
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"evil{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert len(open_faces(str(path))) == 4


def _png_claiming(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (200_000, 200_000), (0, 0), (10, 0)])
def test_an_image_that_claims_a_huge_or_no_size_is_unreadable(size):
    assert decode(_png_claiming(*size)) is None


def test_broken_images_decode_to_an_image_or_none():
    rng = random.Random(2)
    image = cv2.imdecode(np.frombuffer(_png(), np.uint8), 1)
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".tiff", ".ppm"):
        data = cv2.imencode(suffix, image)[1].tobytes()
        assert decode(data).shape == (128, 128, 3)
        for _ in range(25):
            broken = bytearray(data)
            for _ in range(20):
                # The head of a file decides most.
                broken[rng.randrange(min(len(broken), rng.choice((64, 1 << 20))))] = rng.randrange(256)
            found = decode(bytes(broken[: rng.choice((len(broken), rng.randrange(len(broken))))]))
            assert found is None or (found.ndim == 3 and found.dtype == np.uint8)


def test_16_bit_grey_and_transparent_images_become_rgb_bytes():
    grey = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    for image in (grey, grey.astype(np.uint16) * 257, np.repeat(grey[..., None], 4, 2)):
        found = decode(cv2.imencode(".png", image)[1].tobytes())
        assert (found.shape, found.dtype) == ((20, 30, 3), np.uint8)
        np.testing.assert_array_equal(found[..., 0], grey)


def test_strange_names_survive_a_folder_and_a_file(tmp_path):
    names = ["a b", "ünï", "-rf", "$(x)", "a\nb", os_name := "bad\udcff"]
    for i, name in enumerate(names):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for j in range(2):
            (folder / f"{j}.png").write_bytes(_png(2 * i + j))
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "dangling.png").symlink_to(tmp_path / "nowhere")
    faces = open_faces(str(tmp_path / "data"), aligned=True)
    assert os_name in faces.names
    assert len(faces) == 12
    faces.save(tmp_path / "faces.npz")
    assert Faces.load(tmp_path / "faces.npz").keys == faces.keys


def test_a_pickle_in_a_stored_set_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "faces.npz", images=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        Faces.load(tmp_path / "faces.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"key_a,key_b,same,fold\n",
        b"a,b\n1,2\n",
        b"key_a,key_b,same,fold\nx/0,x/1\n",
        b"key_a,key_b,same,fold\nx/0,x/1,yes,0\n",
        b"key_a,key_b,same,fold\nx/0,x/1,1,0\nx/0,x/2,2,1\n",
        b"key_a,key_b,same,fold\nx/0,x/1,1,0\nx/0,x/2,0,0\n",
        b"key_a,key_b,same,fold\nx/0,x/1,1,0\nx/0,x/2,1,1\n",
        b"key_a,key_b,same,fold\nx/0,x/9,1,0\nx/0,x/2,0,1\n",
        b"\xff\xfe\0\0",
        b"key_a,key_b,same,fold\n\0,\0,1,1\n",
        b'key_a,key_b,same,fold\n"' + b"x" * 200_000 + b'",b,1,1\n',
    ],
)
def test_malformed_lists_of_pairs_are_refused(tmp_path, text):
    path = tmp_path / "pairs.csv"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"pairs\.csv"):
        read_pairs(path, ("x/0", "x/1", "x/2"))
