"""Arrays in .npz files: NumPy reads what is written, and what is read back costs no memory until it is looked at."""

import numpy as np
import pytest

from faces import archive
from faces.store import LazyImages


def test_numpy_reads_what_is_written_and_a_map_is_what_numpy_reads(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (1100, 4, 5, 3), dtype=np.uint8),
        "names": np.array(["a", "ünï", ""]),
        "none": np.zeros((0, 3), np.float32),
    }
    archive.write(tmp_path / "a.npz", **arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    for name, array in arrays.items():
        np.testing.assert_array_equal(archive.mapped(tmp_path / "a.npz", name), array)
    images = archive.mapped(tmp_path / "a.npz", "images")
    assert isinstance(images, np.memmap)
    images[0] = 7
    np.testing.assert_array_equal(archive.mapped(tmp_path / "a.npz", "images"), arrays["images"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_numpy_are_read_too(tmp_path, save):
    x, y = np.arange(24.0).reshape(2, 3, 4), np.asfortranarray(np.arange(6).reshape(2, 3))
    save(tmp_path / "a.npz", x=x, y=y)
    np.testing.assert_array_equal(archive.mapped(tmp_path / "a.npz", "x"), x)
    np.testing.assert_array_equal(archive.mapped(tmp_path / "a.npz", "y"), y)
    with pytest.raises(KeyError):
        archive.mapped(tmp_path / "a.npz", "z")


def test_undecoded_images_go_through_memory_some_at_a_time(tmp_path):
    class Counted(LazyImages):
        most = 0

        def _read(self, rows):
            Counted.most = max(Counted.most, len(rows))
            return np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 2, 2, 3))

    archive.write(tmp_path / "a.npz", images=Counted(3000, (2, 2, 3)))
    assert Counted.most == 512
    assert np.array_equal(archive.mapped(tmp_path / "a.npz", "images")[:, 1, 1, 2], np.arange(3000).astype(np.uint8))
