"""What each way of enlarging low-resolution faces in front of a teacher gives and costs, and what the student does."""

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F

from benchmarks.timing import run_windows
from compress.espcn import Enlarging, Espcn, Recipe, largest_scale, psnr, train_espcn
from compress.part_scores import pair_values, summary
from compress.rows import read_row, row_file, write_row
from compress.run import progress_bar
from export.kit import student_crops
from export.stage import reference_embeddings
from faces.align import crop
from faces.dataset import Faces
from faces.degrade import resize
from faces.files import write_json
from faces.parts import Part
from faces.threads import cores, threads
from faces.verification import similarity
from students import student as networks
from students.student import count_macs
from teachers.registry import weight_files
from teachers.teacher import Teacher

FULL, BASELINE, ESPCN, STUDENT = "teacher, full size", "bilinear", "ESPCN", "student"
ROWS = (FULL, BASELINE, "bicubic", ESPCN, STUDENT)
_CHUNK = 512
_TIMED_FACES, _WINDOWS, _MOST_SECONDS = 32, 10, 5.0

Enlarge = Callable[[np.ndarray, int], np.ndarray]
"""(N, p, p, 3) uint8 and a side in px to (N, side, side, 3) uint8."""


@dataclasses.dataclass(frozen=True)
class Student:
    name: str
    model: networks.Student
    key: str


def bilinear(images: np.ndarray, side: int) -> np.ndarray:
    """(N, p, p, 3) uint8 to (N, side, side, 3) uint8, side >= p: bilinear interpolation, rounded."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return x.round_().byte().permute(0, 2, 3, 1).contiguous().numpy()


class Study:
    def __init__(
        self, teacher: Teacher, students: dict[int, Student], train: Faces, parts: list[Part], how: Recipe, seed: int,
        folder: Path,
    ) -> None:  # fmt: skip
        self.teacher, self.students, self.train, self.parts = teacher, students, train, parts
        self.how, self.seed, self.folder = how, seed, folder

    def table_of(self, px: int) -> dict[str, Any]:
        """Every row at one size, each measured unless it was."""
        scale = largest_scale(px, self.teacher.input_px)
        network, minutes = self._espcn(px, scale)
        ways: dict[str, Enlarge] = {
            BASELINE: bilinear,
            "bicubic": resize,
            ESPCN: lambda low, side: resize(network.enlarge(low), side),
        }
        there = [row for row in ROWS if row != STUDENT or px in self.students]
        kept = {row: self._scores(row, px, scale, ways.get(row)) for row in there}
        speed = self._speed(px, ways)
        rows = []
        for row in there:
            told: dict[str, Any] = {"row": self.students[px].name if row == STUDENT else row, "parts": {}}
            for part in self.parts:
                mine, plain = (pair_values(kept[one][f"{part.name}/scores"], part.pairs) for one in (row, BASELINE))
                told["parts"][part.name] = summary(mine, None if row == BASELINE else plain, part)
                if f"{part.name}/psnr" in kept[row]:
                    told["parts"][part.name]["psnr_db"] = float(kept[row][f"{part.name}/psnr"])
            rows.append({**told, "macs": self._macs(row, px, network), "faces_per_cpu_second": speed.get(row)})
        return {
            "px": px, "scale": scale, "espcn_cpu_minutes": round(minutes, 2), "timed_batch": _TIMED_FACES, "rows": rows,
        }  # fmt: skip

    def _espcn(self, px: int, scale: int) -> tuple[Espcn, float]:
        what = Enlarging(self.teacher.template, self.teacher.input_px, px, scale)
        with threads(1), progress_bar(Console(stderr=True), f"ESPCN {px} px", self.how.steps) as advance:
            return train_espcn(self.train, what, self.how, self.seed, self.folder, advance)

    def _file(self, kind: str, row: str, px: int, suffix: str = ".npz") -> Path:
        made: list[Any] = [self.teacher.name, px, [part.state() for part in self.parts]]
        if row in (STUDENT, "all") and px in self.students:
            made.append(self.students[px].key)
        if row in (ESPCN, "all"):
            made += [dataclasses.asdict(self.how), self.seed, self.train.state()]
        return row_file(self.folder, made, kind, row, px, suffix=suffix, files=weight_files(self.teacher.name))

    def _scores(self, row: str, px: int, scale: int, way: Enlarge | None) -> dict[str, np.ndarray]:
        """The scores of each part's pairs and, of an enlargement, its mean PSNR; measured unless that was done."""
        file = self._file("scores", row, px)
        kept: dict[str, Any] | None = read_row(file)
        if kept is None:
            kept = {}
            for part in self.parts:
                what = f"{row}, {px} px, {part.name}"
                with progress_bar(Console(stderr=True), what, len(part.faces)) as advance:
                    if row == STUDENT:
                        student = self.students[px].model
                        embedded = reference_embeddings(student, student_crops(part.faces, px, px))
                    else:
                        embedded, noise = self._embed(part.faces, px, scale, way, advance)
                        if way is not None:
                            kept[f"{part.name}/psnr"] = noise
                metric = "cosine" if row == STUDENT else self.teacher.metric
                kept[f"{part.name}/scores"] = similarity(embedded[part.pairs.a], embedded[part.pairs.b], metric)
            write_row(file, kept)
        return kept

    def _embed(
        self, faces: Faces, px: int, scale: int, way: Enlarge | None, advance: Callable[[int], None]
    ) -> tuple[np.ndarray, float]:
        """The teacher's embeddings (N, D) of faces reduced and enlarged, and the mean PSNR at px x scale, in dB."""
        side = self.teacher.input_px
        features, noise = [], [np.empty(0)]
        for start in range(0, len(faces), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            seen = crop(faces.images[chunk], faces.landmarks[chunk], self.teacher.template, side)
            if way is not None:
                low = resize(seen, px)
                noise.append(psnr(way(low, px * scale), resize(seen, px * scale)))
                seen = way(low, side)
            with threads(cores()):
                features.append(self.teacher.embed(seen, progress=advance))
        joined = np.concatenate(noise)
        return np.concatenate(features), float(joined.mean()) if len(joined) else 0.0

    def _macs(self, row: str, px: int, network: Espcn) -> int:
        """Multiply-accumulates of one face; interpolation is not counted."""
        if row == STUDENT:
            return count_macs(self.students[px].model, px)
        enlarging = count_macs(network, px) if row == ESPCN else 0
        return enlarging + count_macs(self.teacher, self.teacher.input_px)

    def _speed(self, px: int, ways: dict[str, Enlarge]) -> dict[str, float]:
        """Faces a second of one core by row, all in PyTorch and in one run: bytes at `px` to embeddings."""
        file = self._file("speed", "all", px, ".json")
        if not file.is_file():
            low = np.random.default_rng(0).integers(0, 256, (_TIMED_FACES, px, px, 3), dtype=np.uint8)
            side, teacher = self.teacher.input_px, self.teacher
            calls = {row: partial(lambda way: teacher.embed(way(low, side)), way) for row, way in ways.items()}
            if px in self.students:
                calls[STUDENT] = partial(reference_embeddings, self.students[px].model, low)
            rates = {}
            with threads(1), progress_bar(Console(stderr=True), "speed", len(calls)) as advance:
                for row, call in calls.items():
                    _, seconds, computed = run_windows(
                        call, _TIMED_FACES, _WINDOWS, 0.05, _MOST_SECONDS, time.perf_counter
                    )
                    rates[row] = _TIMED_FACES * len(seconds) / computed
                    advance(1)
            write_json(file, rates)
        return json.loads(file.read_text())
