"""Memory of a training on a CPU: freed by one step, taken by the next."""

import contextlib
import ctypes
from collections.abc import Iterator

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TRIM_DEFAULT, _MMAP_DEFAULT = 128 * 1024, 65536


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Have glibc keep what is freed meanwhile, and give it back behind; nothing with another C library.

    A step's activations are gigabytes in blocks so large that glibc returns each one to the system, which then hands
    it out again zeroed, page by page: in the system time of a run (`time python -m teachers.finetune ...`) it shows.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MMAP_DEFAULT)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_DEFAULT)
        libc.malloc_trim(0)
