"""How many CPU threads the work takes."""

import contextlib
import os
from collections.abc import Iterator

import cv2
import torch


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run PyTorch on `count` CPU threads and OpenCV on one within this context.

    The pipeline runs on one and gives all cores to the teacher alone: layers as small as the student's wait for
    their threads more than they work, above all on cores shared with other programs (`distill.threads` is for those
    that are not). It also makes the student's bytes independent of the number of cores. OpenCV's second thread makes
    no crop of 128 px faster, but takes a core.
    """
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
