"""One row of a teachers' table: train, embed the fixed pairs, keep scores and figures; run once, then read."""

import base64
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.teacher_rows import Row
from faces.dataset import Faces, check_strangers, concatenate, find_leaks
from faces.errors import UserError
from faces.files import fingerprint, lock, whole, write_json
from faces.parts import Part, open_parts, roc_of
from faces.sources import open_faces
from faces.verification import correct_by_fold
from teachers.alpha import ALPHA
from teachers.evaluate import CROSS_PX, pair_scores
from teachers.fabric import create_fabric
from teachers.finetune import TUNED, finetune_teacher
from teachers.registry import create_single
from teachers.settings import finetune_settings
from teachers.teacher import Teacher

SCORES = "scores.npz"


@dataclass(frozen=True)
class Bench:
    """What every row of a study shares. specs: faces to learn from; vals: (faces, pairs file) of each validation
    part; rows: where a row's JSON is kept; folder: where its scores (.npz) and its teacher are."""

    specs: tuple[str, ...]
    vals: tuple[tuple[str, str], ...]
    rows: Path
    folder: Path
    scale: float = 1.0
    """Times the steps of every row: below 1 for a quick look."""
    unlabelled: tuple[str, ...] = ()
    """More faces, for the rows that learn from unlabelled ones."""
    device: str = "cpu"

    @cached_property
    def train(self) -> Faces:
        train = concatenate([open_faces(spec) for spec in self.specs])
        check_strangers(train, *(part.faces for part in self.parts))
        return train

    @cached_property
    def everyone(self) -> Faces:
        """What rows with unlabelled faces learn from: whoever is known in --unlabelled counts as nobody."""
        more = concatenate([open_faces(spec) for spec in self.unlabelled])
        for part in self.parts:
            if reasons := find_leaks(more, part.faces):
                raise UserError(
                    f"{part.name} and --unlabelled are not independent ({len(reasons)} times): "
                    f"{'; '.join(reasons[:3])}. Take them out of one of the two"
                )
        return concatenate([self.train, replace(more, identities=np.full(len(more), -1), alone={})])

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(open_parts(self.vals))

    def settings(self, row: Row) -> dict[str, Any]:
        changes = dict(row.changes)
        if row.method != "none":
            changes["steps"] = max(1, round(changes["steps"] * self.scale))
        return asdict(finetune_settings(row.method, **changes))

    def name(self, row: Row, seed: int) -> str:
        """Names a row by what it is made of: settings, seed and the names of the data, wherever these lie."""
        settings = self.settings(row)
        data = [Path(one).name for spec in (self.specs, *self.vals) for one in spec]
        # What came later names a row only where it is used: rows from before keep their names.
        singles, relational = settings.pop("singles"), settings.pop("relational")
        interpolate = settings.pop("interpolate")
        if settings.pop("unlabelled"):
            settings["unlabelled"] = [row.changes["unlabelled"], *(Path(one).name for one in self.unlabelled)]
            settings |= {"singles": True} if singles else {}
        settings |= {"relational": relational} if relational else {}
        settings |= {"interpolate": interpolate} if interpolate < 1 else {}
        made = [row.teacher, row.weights, settings, seed if row.method != "none" else 0, row.same, data]
        if row.precision != "32":
            made.append(row.precision)
        word = "".join(c if c.isalnum() else "-" for c in row.name)
        return f"{word}-{seed}-{fingerprint(made)}"

    def read(self, row: Row, seed: int) -> dict[str, Any] | None:
        """What `run` measured; None where the row was not run. UserError where its faces or pairs were others of the
        same names (rows from before tell the number of pairs alone)."""
        file = self.rows / f"{self.name(row, seed)}.json"
        if not file.is_file():
            return None
        found = json.loads(file.read_text())
        kept = {name.partition("/")[0]: len(base64.b64decode(one["right"])) for name, one in found["measured"].items()}
        now = {part.name: -(-len(part.pairs.same) // 8) for part in self.parts}
        if found.get("data", self._data(row)) != self._data(row) or kept != now:
            raise UserError(
                f"{file} was measured on other faces or pairs than these of the same names: delete it, or give "
                "another --out and --folder"
            )
        return found

    def _data(self, row: Row) -> str:
        """Of the faces and pairs themselves."""
        learnt = self.everyone if row.changes.get("unlabelled") else self.train
        return fingerprint([learnt.state() if row.method != "none" else "", [part.state() for part in self.parts]])

    def scores(self, row: Row, seed: int) -> dict[str, NDArray[np.float32]] | None:
        """Scores (P,) by `part/protocol`; None where they are not kept here."""
        file = self.folder / self.name(row, seed) / SCORES
        if not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}

    def run(self, row: Row, seed: int, progress: Callable[[int, str], None] | None = None) -> dict[str, Any]:
        """Train and measure unless it was done before. UserError where another process works on this row."""
        if (found := self.read(row, seed)) is not None:
            return found
        folder = self.folder / self.name(row, seed)
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            # Another process may have ended it meanwhile.
            return self.read(row, seed) or self._run(row, seed, folder, progress)

    def _run(self, row: Row, seed: int, folder: Path, progress: Callable[[int, str], None] | None) -> dict[str, Any]:
        settings = self.settings(row)
        how = finetune_settings(**settings)
        teacher = create_single(row.teacher, row.weights, seed=seed)
        began, facts = time.process_time(), dict[str, Any]()
        # Its seconds are then those of the last start.
        facts["resumed"] = any(folder.glob("step-*"))
        if row.method != "none":
            fabric = create_fabric(self.device, precision=row.precision, folder=folder)
            faces = self.everyone if how.unlabelled else self.train
            curve = finetune_teacher(
                teacher, faces, how, seed, folder, fabric, base=row.weights, base_seed=seed, progress=progress,
                first_gradient=lambda gradient: facts.update(first_gradient=histogram(gradient)),
            )  # fmt: skip
            facts["curve"] = curve[:: max(1, len(curve) // 20)]
            trained = sum(p.numel() for p in teacher.backbone.parameters() if p.requires_grad)
            facts["trained_share"] = trained / sum(p.numel() for p in teacher.backbone.parameters())
        facts["train_cpu_seconds"] = round(time.process_time() - began, 1)
        on_gpu = row.method != "none" and self.device != "cpu"
        facts["device"] = torch.cuda.get_device_name(self.device) if on_gpu else "cpu"
        teacher.eval()
        scores = self._scores(teacher, row)
        with whole(folder / SCORES) as temporary:
            np.savez(temporary.open("wb"), **scores)  # type: ignore[arg-type]
        if teacher.alpha is not None:
            facts["alpha"] = json.loads((folder / ALPHA).read_text())
        if row.method == "qgface":
            facts["norm_resolution_spearman"] = round(norm_correlation(teacher, self.parts[-1].faces), 4)
        found = {
            "row": row.name, "method": row.method, "teacher": row.teacher, "weights": row.weights, "seed": seed,
            "data": self._data(row), "settings": settings, "precision": row.precision, "metric": teacher.metric,
            "torch": torch.__version__,
            "cpu_seconds": round(time.process_time() - began, 1), **facts,
            "measured": {name: self._measured(name, values) for name, values in scores.items()},
        }  # fmt: skip
        write_json(self.rows / f"{self.name(row, seed)}.json", found)
        for left in (*folder.glob("step-*"), folder / "csv", folder / "tensorboard"):
            if left.is_dir():
                shutil.rmtree(left)
        return found

    def _scores(self, teacher: Teacher, row: Row) -> dict[str, NDArray[np.float32]]:
        return {
            f"{part.name}/{protocol}": values
            for part in self.parts
            for protocol, values in pair_scores(teacher, part.faces, part.pairs, same=row.same).items()
        }

    def _measured(self, name: str, scores: NDArray[np.float32]) -> dict[str, Any]:
        """Accuracy and EER (percent), and which pairs were right: bits in the order of the pairs, base64."""
        part = next(one for one in self.parts if one.name == name.partition("/")[0])
        right = correct_by_fold(scores, part.pairs)
        return {
            "accuracy": round(100 * float(right.mean()), 3),
            "eer": round(100 * roc_of(scores, part.pairs).eer(), 3),
            "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        }

    def tuned(self, row: Row, seed: int) -> Path:
        """The fine-tuned teacher of a row that was run here; UserError where it was not."""
        file = self.folder / self.name(row, seed) / TUNED
        if not file.is_file():
            raise UserError(f"the teacher of row {row.name}, seed {seed} is not in {self.folder}: run its table first")
        return file


def histogram(gradient: torch.Tensor, bins: int = 81) -> dict[str, Any]:
    """Counts of the values in `bins` equal bins over +- the 99.9th percentile of their sizes, and their norm."""
    values = gradient.detach().cpu().numpy()
    edge = float(np.quantile(np.abs(values), 0.999))
    counts, _ = np.histogram(values.clip(-edge, edge), bins, (-edge, edge))
    return {"edge": edge, "counts": counts.tolist(), "norm": float(np.linalg.norm(values)), "values": len(values)}


def norm_correlation(teacher: Teacher, faces: Faces, count: int = 150) -> float:
    """Spearman's rank correlation of the feature's norm with the resolution of the same faces, from 7 px to full.

    Below about .5 QGFace's gate, which takes the norm for quality, is blind.
    """
    chosen = faces.subset(np.random.default_rng(0).permutation(len(faces))[:count])
    levels = [px or teacher.input_px for px in CROSS_PX]
    norms = [np.linalg.norm(teacher.embed_faces(chosen, px), axis=1) for px in CROSS_PX]
    return float(spearmanr(np.repeat(levels, len(chosen)), np.concatenate(norms)).statistic)


def right_pairs(measured: dict[str, Any], count: int) -> NDArray[np.bool_]:
    """(count,): which pairs were right."""
    bits = np.frombuffer(base64.b64decode(measured["right"]), np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)
