"""Undecoded images: the same bytes as in memory, views, joins, processes, files that change."""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faces.dataset import Faces, add_virtual_faces, concatenate, near_twins, virtual_faces
from faces.errors import UserError
from faces.sources import open_faces, orl, shards
from faces.sources.encoded import EncodedImages, Index
from faces.store import JoinedImages, LazyImages, MeanImages, in_threads

_LANDMARKS = [[46.0, 58.0], [82.0, 59.0], [64.0, 78.0], [50.0, 97.0], [79.0, 98.0]]
_MAGIC = bytes.fromhex("0a23d7ce")


def _image(seed, size=128, suffix=".jpg"):
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return cv2.imencode(suffix, cv2.resize(coarse, (size, size)))[1].tobytes()


def _shard(path, count=6, mode="w", shift=0):
    with tarfile.open(path, mode) as archive:
        for i in range(count):
            # Every other image is no stored crop: it is cut by its landmarks.
            points = (np.array(_LANDMARKS) * (1 + i % 2) + i // 2).tolist()
            note = json.dumps({"identity": f"p{i // 2}", "landmarks": points}).encode()
            for name, data in ((f"{i}.jpg", _image(i + shift, 128 * (1 + i % 2))), (f"{i}.json", note)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def _rec(folder, count=6):
    folder.mkdir()
    data = b""
    for i in range(count):
        payload = bytes(4) + np.float32(i // 2).tobytes() + bytes(16)
        image = _image(i, 112)
        image += b"." * (-len(image) % 4)
        # The odd ones are in two parts: the magic number stands behind the JPEG's end.
        parts = [(1, payload + image), (3, b"tail")] if i % 2 else [(0, payload + image)]
        for flag, part in parts:
            data += _MAGIC + (flag << 29 | len(part)).to_bytes(4, "little") + part
    (folder / "train.rec").write_bytes(data)
    return folder


def _folder(root, count=6):
    for i in range(count):
        (root / f"p{i // 2}").mkdir(parents=True, exist_ok=True)
        (root / f"p{i // 2}/{i}.jpg").write_bytes(_image(i, 100 + i))
    return root


def _bin(path, count=6):
    path.write_bytes(pickle.dumps(([_image(i, 112) for i in range(count)], [True] * (count // 2))))
    return path


MAKERS = {
    "shard": lambda at: _shard(at / "a.tar"),
    "gzipped shard": lambda at: _shard(at / "a.tar", mode="w:gz"),
    "folder": lambda at: _folder(at / "people"),
    "rec": lambda at: _rec(at / "set"),
    "bin": lambda at: _bin(at / "x.bin"),
}


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", MAKERS)
def test_a_lazy_set_is_the_eager_one(tmp_path, layout, colour):
    spec = str(MAKERS[layout](tmp_path))
    eager = open_faces(spec, aligned=layout == "folder", colour=colour)
    counted = []
    lazy = open_faces(spec, aligned=layout == "folder", colour=colour, lazy=True, progress=counted.append)
    assert sum(counted) == len(eager) == 6
    assert isinstance(lazy.images, EncodedImages)
    assert (lazy.images.shape, lazy.images.dtype, len(lazy.images)) == (eager.images.shape, np.uint8, 6)
    np.testing.assert_array_equal(lazy.images[:], eager.images)
    np.testing.assert_array_equal(lazy.landmarks, eager.landmarks)
    np.testing.assert_array_equal(lazy.identities, eager.identities)
    assert (lazy.keys, lazy.names, lazy.integrity) == (eager.keys, eager.names, eager.integrity)


def test_a_lazy_set_of_detected_faces_is_the_eager_one(tmp_path):
    for record in list(orl.read())[:6]:
        (tmp_path / "faces/one").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"faces/one/{record.key.replace('/', '-')}.pgm").write_bytes(record.data)
    eager, lazy = (open_faces(str(tmp_path / "faces"), lazy=lazy) for lazy in (False, True))
    assert len(eager) >= 5
    assert lazy.keys == eager.keys
    np.testing.assert_array_equal(lazy.landmarks, eager.landmarks)
    np.testing.assert_array_equal(lazy.images, eager.images)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    spec = str(_shard(tmp_path_factory.mktemp("pair") / "a.tar", 12))
    return open_faces(spec), open_faces(spec, lazy=True)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_rows_are_taken_as_numpy_takes_them(pair, data):
    eager, lazy = pair
    order = data.draw(st.lists(st.integers(-12, 11), max_size=20))
    one, other = (eager, lazy)
    if order and data.draw(st.booleans()):
        one, other = eager.subset(np.array(order) % 12), lazy.subset(np.array(order) % 12)
    count = len(one)
    key = data.draw(
        st.one_of(
            st.integers(-count, count - 1),
            st.slices(count),
            st.lists(st.integers(-count, count - 1), max_size=8).map(lambda rows: np.array(rows, dtype=np.int64)),
            st.lists(st.booleans(), min_size=count, max_size=count).map(lambda mask: np.array(mask, dtype=bool)),
        )
    )
    np.testing.assert_array_equal(other.images[key], one.images[key])
    assert other.images[key].dtype == np.uint8


def test_what_is_no_row_is_refused(pair):
    images = pair[1].images
    for key in (12, -13, [12], (0, 1), np.array([[0]]), "a"):
        with pytest.raises(IndexError):
            images[key]


def test_iteration_and_conversion_give_every_image(pair):
    eager, lazy = pair
    assert all((a == b).all() for a, b in zip(eager.images, lazy.images, strict=True))
    np.testing.assert_array_equal(np.asarray(lazy.images), eager.images)
    assert np.asarray(lazy.images, dtype=np.float32).dtype == np.float32
    assert near_twins(eager, lazy) == [(i, i) for i in range(12)]


def test_a_subset_copies_no_image(pair):
    lazy = pair[1]
    part = lazy.subset([3, 3, 0]).subset([2, 0])
    assert part.keys == (lazy.keys[0], lazy.keys[3])
    assert part.images._offset is lazy.images._offset
    np.testing.assert_array_equal(part.images[:], pair[0].images[[0, 3]])


def test_sets_are_joined_undecoded(tmp_path, pair, noise_faces):
    eager, lazy = pair
    noise = noise_faces([0, 0, -1])
    more = open_faces(str(_rec(tmp_path / "set")), lazy=True)
    joined = concatenate([noise, lazy, more])
    assert isinstance(joined.images, JoinedImages)
    expected = np.concatenate([noise.images, eager.images, more.images[:]])
    np.testing.assert_array_equal(joined.images[:], expected)
    rows = np.array([20, 0, 3, 14, 15, 2])
    np.testing.assert_array_equal(joined.images[rows], expected[rows])
    part = joined.subset(rows)
    assert isinstance(part.images, LazyImages)
    np.testing.assert_array_equal(part.images[1:4], expected[rows[1:4]])
    twice = concatenate([part, noise_faces([0], "again")])
    np.testing.assert_array_equal(twice.images[-2:], np.stack([expected[2], noise_faces([0]).images[0]]))


def test_virtual_faces_stand_behind_undecoded_ones(pair):
    eager, lazy = pair
    more = add_virtual_faces(lazy, 5, 0)
    assert isinstance(more.images, LazyImages)
    # Not even the means are in memory.
    assert isinstance(virtual_faces(lazy, 5, 0).images, MeanImages)
    assert isinstance(add_virtual_faces(eager, 5, 0).images, np.ndarray)
    np.testing.assert_array_equal(more.images[:], add_virtual_faces(eager, 5, 0).images)


def test_means_are_taken_face_by_face_in_any_order(pair):
    eager, lazy = pair
    first, second = np.random.default_rng(0).integers(0, len(eager), (2, 150))
    naive = np.stack(
        [(eager.images[i].astype(int) + eager.images[j] + 1) // 2 for i, j in zip(first, second, strict=True)]
    )
    found = MeanImages(lazy.images, first, second)
    assert found.shape == naive.shape
    rows = np.array([149, 3, 3, 70])
    np.testing.assert_array_equal(found[rows], naive[rows])
    np.testing.assert_array_equal(found[:], naive)
    np.testing.assert_array_equal(found[5], naive[5])


def test_a_lazy_set_is_saved_with_its_images(tmp_path, pair):
    pair[1].save(tmp_path / "faces.npz")
    np.testing.assert_array_equal(Faces.load(tmp_path / "faces.npz").images, pair[0].images)


@pytest.mark.parametrize("layout", ["shard", "folder", "rec"])
@pytest.mark.parametrize("change", ["other bytes", "longer", "touched", "gone"])
def test_a_file_that_changed_is_named(tmp_path, layout, change):
    made = MAKERS[layout](tmp_path)
    faces = open_faces(str(made), aligned=True, lazy=True)
    for file in [made] if made.is_file() else [path for path in made.rglob("*") if path.is_file()]:
        data = file.read_bytes()
        if change == "gone":
            file.unlink()
        elif change == "touched":
            os.utime(file, ns=(0, 0))
        else:
            file.write_bytes(data[:-1] + b"x" if change == "other bytes" else data + b"x")
    said = "is gone since" if change == "gone" else "changed since it was indexed: open the faces again"
    with pytest.raises(UserError, match=said):
        faces.images[0]
    with pytest.raises(UserError, match=said):
        faces.images[:]


def test_a_relative_path_holds_in_another_working_folder(tmp_path, monkeypatch):
    _shard(tmp_path / "a.tar")
    monkeypatch.chdir(tmp_path)
    faces = open_faces("a.tar", lazy=True)
    monkeypatch.chdir("/")
    assert faces.images[0].shape == (128, 128, 3)


def _send(images, queue):
    queue.put(images[:].sum(dtype=np.int64))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_the_same(pair, method):
    eager, lazy = pair
    assert lazy.images[:].sum(dtype=np.int64) == eager.images.sum(dtype=np.int64)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_send, args=(lazy.subset([1, 5]).images, queue))
    process.start()
    assert queue.get(timeout=60) == eager.images[[1, 5]].sum(dtype=np.int64)
    process.join(timeout=60)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    "module", ["dataset", "store", "sources", "sources.encoded", "sources.record", "align", "shards", "verification"]
)
def test_every_module_can_be_imported_first(module):
    subprocess.run([sys.executable, "-c", f"import faces.{module}"], check=True)


def test_threads_keep_the_order_and_pass_errors_on():
    assert list(in_threads(lambda i: i * i, range(100))) == [i * i for i in range(100)]
    assert list(in_threads(str, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // (50 - i), range(100)))


def test_the_index_takes_33_bytes_a_face(tmp_path):
    shard = _shard(tmp_path / "a.tar", 4)
    faces = open_faces(str(shard), lazy=True)
    record = next(iter(shards.read(shard)))
    tracemalloc.start()
    try:
        index = Index("rgb")
        for _ in range(20_000):
            index.add(record, np.array(_LANDMARKS))
        images = EncodedImages(index)
        measured = tracemalloc.get_traced_memory()[0] / 20_000
    finally:
        tracemalloc.stop()
    assert 33 <= images.nbytes / 20_000 < 33.1
    # Arrays that grow one by one keep up to an eighth in reserve.
    assert measured < 33 * 1.2
    assert faces.images.nbytes < 4 * 33 + 2 * 80 + 16 + 49 + 8 + len(str(shard)) + 1


def test_a_gzipped_shard_keeps_its_files_in_memory(tmp_path):
    shard = _shard(tmp_path / "a.tar", 4)
    (tmp_path / "b").mkdir()
    packed = tmp_path / "b/a.tar"
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    faces = open_faces(str(packed), lazy=True)
    packed.unlink()
    np.testing.assert_array_equal(faces.images[:], open_faces(str(shard)).images)
    assert faces.images.nbytes > sum(len(_image(i, 128 * (1 + i % 2))) for i in range(4))
