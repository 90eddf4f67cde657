"""NumPy's .npz files of more than memory holds: written some rows at a time, read through the system's file cache."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK = 512


def write(path: Path, **arrays: Any) -> None:
    """Write arrays, or what reads like one by rows, as `numpy.savez` does: uncompressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = np.lib.format.header_data_from_array_1_0(np.empty((0, *array.shape[1:]), array.dtype))
                np.lib.format.write_array_header_2_0(file, header | {"shape": tuple(array.shape)})
                for start in range(0, len(array), _CHUNK):
                    file.write(np.ascontiguousarray(array[start : start + _CHUNK]).tobytes())


def mapped(path: Path, name: str) -> np.ndarray:
    """One array of such a file as a memory map; what is written to it stays in this process.

    ValueError where it holds Python objects; KeyError where there is no such array.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(member)
            header = member.tell()
        if dtype.hasobject:
            raise ValueError(f"{path} holds Python objects, which are not read (allow_pickle)")
        if info.compress_type != zipfile.ZIP_STORED or not np.prod(shape):
            return np.load(path, allow_pickle=False)[name]
        # The local header repeats the name and an extra field, each as long as it says itself.
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        start = info.header_offset + 30 + int(lengths.sum()) + header
    return np.memmap(path, dtype, "c", start, shape, "F" if fortran else "C")
