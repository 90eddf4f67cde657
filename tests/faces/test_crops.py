"""Training crops in a file: the same as cut in memory, readable before all are there, never half a crop."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from faces.align import crop
from faces.crops import CropStore
from faces.errors import UserError


class Slow:
    """Images of which the last ones come when they are let."""

    def __init__(self, images, free):
        self.images, self.free, self.let = images, free, threading.Event()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        if rows.min() >= self.free:
            assert self.let.wait(20)
        return self.images[rows]


def test_rows_are_the_crops_in_the_order_asked_for(tmp_path, noise_faces):
    faces = noise_faces([0, 1, 2, 1, 0])
    order = np.array([3, 0, 4, 1, 2])
    store = CropStore(faces, 24, 0.1, order, tmp_path)
    rows = np.array([4, 0, 2])
    np.testing.assert_array_equal(
        store.rows(rows), crop(faces.images, faces.landmarks, "arcface", 24, 0.1)[order[rows]]
    )
    assert (len(store), store.shape) == (5, (5, 24, 24, 3))
    assert list(tmp_path.iterdir()) == [], "the file has no name: a killed process leaves nothing"


def test_the_first_rows_are_read_while_the_last_are_being_cut(tmp_path, noise_faces):
    faces = noise_faces(list(range(300)))
    object.__setattr__(faces, "images", slow := Slow(faces.images, 256))
    store = CropStore(faces, 16, 0.0, np.arange(300), tmp_path)
    assert store.rows(np.arange(256)).shape == (256, 16, 16, 3)
    assert store.ready == 256
    found = []
    late = threading.Thread(target=lambda: found.append(store.rows(np.array([299]))))
    late.start()
    late.join(0.2)
    assert not found, "a row that is not cut yet was given"
    slow.let.set()
    late.join(20)
    np.testing.assert_array_equal(found[0], crop(slow.images[299:], faces.landmarks[299:], "arcface", 16, 0.0))


def test_what_goes_wrong_in_cutting_is_told_to_the_reader(tmp_path, noise_faces):
    faces = noise_faces([0, 1])

    class Broken(Slow):
        def __getitem__(self, rows):
            raise UserError("the shard was deleted")

    object.__setattr__(faces, "images", Broken(faces.images, 0))
    store = CropStore(faces, 16, 0.0, np.arange(2), tmp_path)
    with pytest.raises(UserError, match="the shard was deleted"):
        store.rows(np.array([1]))


def test_nothing_is_cut_that_nobody_will_read(tmp_path, noise_faces):
    faces = noise_faces(list(range(300)))
    object.__setattr__(faces, "images", slow := Slow(faces.images, 0))
    before = set(threading.enumerate())
    store = CropStore(faces, 16, 0.0, np.arange(300), tmp_path)
    (cutting,) = set(threading.enumerate()) - before
    asked = []
    slow.images = type("Counted", (), {"__getitem__": lambda self, rows: asked.append(len(rows)) or faces_of(rows)})()
    faces_of = np.zeros((300, 128, 128, 3), np.uint8).__getitem__
    del store
    slow.let.set()
    cutting.join(20)
    assert not cutting.is_alive()
    assert asked == [256]


def test_a_full_disk_is_told_before_anything_is_cut(tmp_path, noise_faces, monkeypatch):
    def full(handle, offset, size):
        assert size == 2 * 16 * 16 * 3
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for 0\.0 GB of training crops \(No space left on device\)"):
        CropStore(noise_faces([0, 1]), 16, 0.0, np.arange(2), tmp_path)


def test_a_process_that_ends_while_faces_are_being_cut_ends_well(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from faces.crops import CropStore\n"
        "from faces.sources import open_faces\n"
        "faces = open_faces('orl')\n"
        "store = CropStore(faces, 144, 0.1, np.arange(200_000) % len(faces), __import__('pathlib').Path(sys.argv[1]))\n"
        "store.rows(np.arange(10))\n"
        "print(store.ready < 200_000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
