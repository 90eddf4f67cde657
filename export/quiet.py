"""Silence while a converter or a native runtime talks to the terminal."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator

_redirection = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what converters print, native code included, to /dev/null; put the root logger's handlers back.

    Works on the file descriptors 1 and 2 of the whole process, so nothing else should draw on the terminal
    meanwhile. Exceptions pass.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with _redirection, open(os.devnull, "wb") as sink:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in saved:
                os.close(descriptor)
            root.handlers[:] = handlers
            root.setLevel(level)
