"""A training set of the paper's size: how fast a student learns from it, and what that takes in memory and time."""

import contextlib
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from rich.console import Console

from faces.align import template_landmarks
from faces.cli import Output, run_cli
from faces.crops import CropStore
from faces.dataset import CROP_PX, Faces
from faces.files import write_json
from faces.sources import open_faces
from faces.store import LazyImages
from students import create_student
from students.batches import Examples, Recipe, crop_side, epoch_order
from students.train import train_student

MARGIN = 0.125
PAPER_FACES, PAPER_VERSIONS = 368_000, 16
"""Ge et al. 2019, section IV: the public set, and the degraded versions of each of its faces."""


class MixedFaces(LazyImages):
    """`count` distinct faces that nobody has: two of `faces`, averaged at an own share, turned and shifted a little.

    Made when they are asked for, as decoding makes images of files; a row is always the same face.
    """

    def __init__(self, faces: Faces, count: int) -> None:
        super().__init__(count, faces.images.shape[1:])
        self._images = faces.images

    def _read(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._mix(int(row)) for row in rows])

    def _mix(self, row: int) -> np.ndarray:
        rng = np.random.default_rng([row, 11])
        first, second = rng.integers(0, len(self._images), 2)
        share = rng.uniform(0.2, 0.8)
        mixed = cv2.addWeighted(self._images[first], share, self._images[second], 1 - share, 0)
        centre = (CROP_PX / 2, CROP_PX / 2)
        turn = cv2.getRotationMatrix2D(centre, rng.uniform(-8, 8), rng.uniform(0.95, 1.05))
        return cv2.warpAffine(mixed, turn, (CROP_PX, CROP_PX), borderMode=cv2.BORDER_REPLICATE)


def measure(student: str, count: int, seconds: float, batch: int, folder: Path) -> dict[str, Any]:
    """Train `student` for `seconds` on `count` faces while they are being cut; the figures of it."""
    source = open_faces("orl")
    points = np.repeat(template_landmarks(CROP_PX)[None].astype(np.float32), count, 0)
    nobody = np.full(count, -1, dtype=np.int64)
    keys = tuple(map(str, range(count)))
    faces = Faces(MixedFaces(source, count), points, nobody, (), keys)  # type: ignore[arg-type]
    before, times, ready = _resident(), [], []
    model = create_student(student)
    # As in the pipeline: its threads make no crop faster, and take the training's cores.
    cv2.setNumThreads(1)
    began = time.perf_counter()
    side = crop_side(model.input_px, MARGIN)
    store = CropStore(faces, side, MARGIN, epoch_order(count, 0, 0).numpy(), folder)
    targets = np.random.default_rng(0).standard_normal((count, 128), dtype=np.float32)

    class Enough(Exception):
        pass

    def tick(_: int) -> None:
        times.append(time.perf_counter() - began)
        ready.append(store.ready)
        if times[-1] > seconds and len(times) > 2:
            raise Enough

    with contextlib.suppress(Enough):
        recipe = Recipe(samples=10**9, batch=batch, threads=torch.get_num_threads())
        train_student(model, Examples(store, MARGIN, targets, None), recipe, 0, progress=tick)
    cut = next((i for i, faces_ in enumerate(ready) if faces_ == count), None)
    # The rate once all are cut, or in the second half where that leaves too little.
    since = seconds / 2 if cut is None or times[cut] > 0.9 * seconds else times[cut]
    start = min(next(i for i, time_ in enumerate(times) if time_ >= since), len(times) - 2)
    rate = batch * (len(times) - 1 - start) / (times[-1] - times[start])
    full = PAPER_FACES * PAPER_VERSIONS
    return {
        "student": student,
        "faces": count,
        "seconds": times[-1],
        "batch": batch,
        "threads": torch.get_num_threads(),
        "first_step_seconds": times[1],
        "cut_at_first_step": ready[1],
        "cut_at_end": ready[-1],
        "all_cut_seconds": None if cut is None else times[cut],
        "faces_seen": batch * (len(times) - 1),
        "faces_per_second": rate,
        "rate_from_seconds": times[start],
        "file_bytes": int(np.prod(store.shape)),
        "private_bytes": _resident() - before,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "paper_faces": full,
        "paper_hours": (times[start] + (full - batch * start) / rate) / 3600,
    }


def _resident() -> int:
    """Bytes that are this process's own: not the system's file cache, which it takes back when it needs to."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--student", default="tiny16", show_default=True)
@click.option("--faces", "count", type=click.IntRange(1024), default=PAPER_FACES, show_default=True)
@click.option("--seconds", type=float, default=120.0, show_default=True, help="How long to train.")
@click.option("--batch", type=click.IntRange(2), default=256, show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where the crops lie meanwhile. Default: a temporary one."
)
@click.option("--json", "json_file", type=Output(), help="Write the figures here.")
@run_cli
def scale(student: str, count: int, seconds: float, batch: int, folder: Path | None, json_file: Path | None) -> None:
    """Train on a made-up set of the paper's size: rate, memory, and the time of the paper's whole run.

    Every face is another one, made by mixing, turning and shifting the ORL faces; training begins with the first
    batch that is cut, while the others still are.
    """
    with tempfile.TemporaryDirectory(prefix="bridgeface-") as made:
        found = measure(student, count, seconds, batch, folder or Path(made))
    say = Console(highlight=False, soft_wrap=True).print
    say(
        f"{student}, {found['faces']:,} faces, {found['threads']} thread(s), batch {batch}: "
        f"{found['faces_per_second']:,.0f} faces/s in the last {found['seconds'] - found['rate_from_seconds']:.0f} of "
        f"{found['seconds']:.0f} s"
    )
    all_cut, since = found["all_cut_seconds"], found["rate_from_seconds"]
    say(
        f"first step after {found['first_step_seconds']:.1f} s with {found['cut_at_first_step']:,} faces cut; "
        + (f"{found['cut_at_end']:,} at the end" if all_cut is None else f"all after {all_cut:.0f} s")
    )
    say(
        f"memory: {found['private_bytes'] / 1e6:,.0f} MB of its own; file of crops {found['file_bytes'] / 1e9:.2f} GB; "
        f"peak resident {found['peak_resident_bytes'] / 1e9:.2f} GB, the cached part of the file included"
    )
    say(
        f"the paper's {PAPER_FACES:,} faces x {PAPER_VERSIONS} versions = {found['paper_faces']:,} faces seen: "
        f"{since:.0f} s, then {found['faces_per_second']:,.0f} faces/s: {found['paper_hours']:.2f} h"
        + (", and less: faces were still being cut" if all_cut is None else "")
    )
    if json_file:
        write_json(json_file, found)
