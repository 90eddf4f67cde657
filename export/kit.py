"""What a run leaves behind so that its models can be exported again: `RUN/export.json`, and how it is read."""

import functools
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export import merge
from export import sidecar as sidecars
from export.mirror import Mirrored
from export.parity import WANTED_FACES, Trial
from export.qat import quantisation_aware
from export.sidecar import Card
from export.stage import Subject, reference_embeddings
from export.targets import Rounding
from export.trial import choose_faces
from faces.align import crop
from faces.dataset import Faces
from faces.degrade import Degradation, degrade, reduce
from faces.errors import UserError
from faces.files import sha256, write_json
from students.batches import training_crops
from students.registry import create_student, load_weights
from students.student import Student, count_macs, count_parameters
from teachers import lora, merging
from teachers.ensemble import Ensemble
from teachers.registry import create_teacher
from teachers.teacher import Teacher
from teachers.tuned import apply_tuned

KIT = "export.json"
STUDENT_FACES = 4096
"""Faces of the trial of a student at most; a teacher's are 256, as it is hundreds of times slower."""
CALIBRATION_FACES, TEACHER_CALIBRATION_FACES = 2048, 128
"""Of a student, so many that rare faces stay within the ranges; a teacher is hundreds of times slower."""
TUNING_FACES = 16384
"""For quantisation-aware fine-tuning, at most: more than it draws."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kit(_Part):
    """Paths are relative to the run folder. train_faces: how many of `train` are real (the rest is virtual);
    student_origin: where the teacher and the faces of a student are told that the run did not train."""

    student: str
    student_file: str
    student_sha256: str | None = None
    student_params: int
    student_macs: int
    student_origin: str | None = None
    teacher: str
    teacher_weights: str | None
    teacher_tuned: str | None
    teacher_params: int
    teacher_macs: int | None
    teacher_card: sidecars.Teacher
    data: sidecars.Data
    train: str
    train_faces: Annotated[int, Field(ge=1)]
    test: str
    test_name: str
    pairs: str | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    margin: Annotated[float, Field(ge=0, le=0.5)]
    degradation: Degradation


def write_kit(folder: Path, kit: Kit) -> None:
    """Write `folder/export.json`, whole."""
    write_json(folder / KIT, kit.model_dump(mode="json"))


def read_kit(folder: Path) -> Kit:
    """UserError where the folder is no run that has exported once."""
    file = folder / KIT
    try:
        # Not by pydantic's own reader, which refuses the path of a file whose name is no UTF-8.
        return Kit.model_validate(json.loads(file.read_bytes()))
    except OSError as problem:
        raise UserError(
            f"{folder} is no run that can be exported ({KIT}: {problem.strerror}): run compress.pipeline up to its "
            "export stage first"
        ) from None
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file} is damaged or of another version ({where}: {first['msg']})") from None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{file} is damaged ({problem}): run compress.pipeline in this folder again") from None


class Bench:
    """A run folder's faces and models, read once."""

    def __init__(self, folder: Path, kit: Kit) -> None:
        self.folder, self.kit = folder, kit
        self.train, self.test = (self._faces(name) for name in (kit.train, kit.test))
        self.train = self.train.subset(np.arange(min(kit.train_faces, len(self.train))))

    def _faces(self, name: str) -> Faces:
        if not (self.folder / name).is_file():
            raise UserError(f"{self.folder / name} is missing: run compress.pipeline in this folder again")
        try:
            return Faces.load(self.folder / name)
        except (zipfile.BadZipFile, ValueError, LookupError, EOFError):
            raise UserError(f"{self.folder / name} is damaged: run compress.pipeline in this folder again") from None

    def student(self, mirror: bool = False) -> Subject:
        """The run's student, with `mirror` as `export.mirror.Mirrored`; its trial are unseen people at its input
        size."""
        kit = self.kit
        model = create_student(kit.student)
        load_weights(model, self._student_file()).eval()
        px = model.input_px
        trial = self._trial(STUDENT_FACES, f"same@{px}", lambda faces: student_crops(faces, None, px))
        calibration = degraded_crops(self.train, px, CALIBRATION_FACES, kit.margin, kit.degradation, kit.seed)
        teacher, data = kit.teacher_card, kit.data
        if (origin := kit.student_origin) is not None:
            teacher = sidecars.Teacher(name=origin, bootstrap=False, licence=origin)
            data = sidecars.Data(name=origin, licence=f"{origin}; int8 ranges of {kit.data.name}: {kit.data.licence}")
        card = Card(
            model=kit.student, template="arcface", metric="cosine", teacher=teacher, data=data,
            parameters=kit.student_params, macs=kit.student_macs,
        )  # fmt: skip
        source = f"{len(calibration)} faces of {kit.data.name}'s training people, randomly degraded to {px} px"
        aware = self._aware(model)
        found = Subject("student", model, card, trial, calibration=calibration, calibration_source=source, aware=aware)
        if not mirror:
            return found
        both = Mirrored(model).eval()
        told = {
            "model": f"{kit.student} and mirror image",
            "parameters": count_parameters(both),
            "macs": count_macs(both, px),
        }
        return replace(
            found, model=both, card=card.model_copy(update=told), suffix="-mirror",
            aware=lambda rounding, tick: Mirrored(aware(rounding, tick)).eval(),
        )  # fmt: skip

    def _student_file(self) -> Path:
        file, known = self.folder / self.kit.student_file, self.kit.student_sha256
        if known is not None and file.is_file() and sha256(file) != known:
            raise UserError(
                f"{file} was trained anew since the run's last export, and {KIT} tells of the student before it: run "
                "compress.pipeline in this folder up to its export stage"
            )
        return file

    def _aware(self, student: Student) -> Callable[[Rounding, Callable[[int, int], None]], Student]:
        kit = self.kit

        @functools.cache
        def crops() -> np.ndarray:
            rng = np.random.default_rng([kit.seed, 19])
            few = self.train.subset(np.sort(rng.permutation(len(self.train))[:TUNING_FACES]))
            return training_crops(few, student.input_px, kit.margin)

        how = kit.degradation
        return lambda rounding, tick: quantisation_aware(
            student, crops(), kit.margin, how, rounding, kit.seed, tick=tick
        )

    def teacher(self, policy: str = "mean") -> Subject:
        """The run's teacher; with twin adapters merged at the alpha that `policy` means, and priced.

        UserError for an ensemble: its members are exported one by one.
        """
        kit = self.kit
        teacher = create_teacher(kit.teacher, self._weights())
        if isinstance(teacher, Ensemble):
            raise UserError(f"{kit.teacher} is an ensemble: export its members, each from a run of its own")
        if kit.teacher_tuned is not None:
            apply_tuned(teacher, self.folder / kit.teacher_tuned)
        # A bootstrap computes in bfloat16 where the CPU does so fast; files start from float32.
        teacher.float().eval()
        side = teacher.input_px
        trial = self._trial(WANTED_FACES, "full", lambda faces: crop(faces.images, faces.landmarks, teacher.template))
        if trial.images.shape[1] != side:
            trial = replace(trial, images=reduce(trial.images, None, side))
        rng = np.random.default_rng([kit.seed, 16])
        few = self.train.subset(np.sort(rng.permutation(len(self.train))[:TEACHER_CALIBRATION_FACES]))
        calibration = crop(few.images, few.landmarks, teacher.template, side)
        halves = np.concatenate([calibration[::2], reduce(calibration[1::2], merge.LOW_PX, side)])
        # A teacher with weights of its own, not fine-tuned, never saw the run's faces.
        learnt = kit.teacher_tuned is not None or kit.teacher_card.bootstrap
        card = Card(
            model=kit.teacher, template=teacher.template, metric=teacher.metric, teacher=kit.teacher_card,
            data=kit.data if learnt else None, parameters=kit.teacher_params, macs=kit.teacher_macs,
        )  # fmt: skip
        source = f"{len(halves)} training faces, half at full size, half at {merge.LOW_PX} px"
        subject = Subject("teacher", teacher, card, trial, calibration=halves, calibration_source=source)
        return self._at(policy, teacher, subject, calibration) if merging.is_twin(teacher) else subject

    def _at(self, policy: str, teacher: Teacher, subject: Subject, calibration: np.ndarray) -> Subject:
        alpha, trial = merge.choose_alpha(policy, teacher, calibration), subject.trial
        if alpha.value is None:
            return replace(
                subject,
                model=merging.at_alpha(teacher, lora.DEFAULT_ALPHA),
                alpha=merging.alphas(teacher, trial.images),
                card=subject.card.model_copy(update={"alpha": alpha}),
                reference=reference_embeddings(teacher, trial.images),
            )
        fixed = merging.merged(teacher, alpha.value)
        # The pairs count in unseen faces, unlabelled ones too; those that fill the trial up say nothing of accuracy.
        own = slice(len(trial.images) - trial.filled)
        prices = merge.price(teacher, fixed, trial.images[own], trial.pairs, trial.identities[own])
        card = subject.card.model_copy(update={"alpha": alpha.model_copy(update={"price": prices})})
        reference = reference_embeddings(merging.at_alpha(teacher, alpha.value), trial.images)
        return replace(subject, model=fixed, card=card, reference=reference)

    def _weights(self) -> str | Path | None:
        given = self.kit.teacher_weights
        inside = None if given is None else self.folder / given
        return inside if inside is not None and inside.is_file() else given

    def _trial(self, most: int, protocol: str, cut: Callable[[Faces], np.ndarray]) -> Trial:
        """Unseen people first, and their pairs; filled up to 256 from the training side, for the numbers alone."""
        kit = self.kit
        file = None if kit.pairs is None else self.folder / kit.pairs
        test, pairs, said = choose_faces(self.test, file, most, kit.seed)
        filled = self.train.subset(np.arange(min(len(self.train), max(0, WANTED_FACES - len(test)))))
        images = np.concatenate([cut(test), cut(filled)])
        identities = np.concatenate([test.identities, np.full(len(filled), -1)])
        return Trial(images, identities, pairs, protocol, f"{kit.test_name}, test{said}", len(filled))


def student_crops(faces: Faces, px: int | None, input_px: int) -> np.ndarray:
    """What a student of `input_px` sees of `faces` at `px` pixels (None = full size): (N, input, input, 3) uint8."""
    return reduce(crop(faces.images, faces.landmarks, "arcface"), px, input_px)


def degraded_crops(faces: Faces, px: int, count: int, margin: float, how: Degradation, seed: int) -> np.ndarray:
    """(N, px, px, 3) uint8: `count` faces at most, as training degrades them; a function of the seed."""
    rng = np.random.default_rng([seed, 18])
    chosen = faces.subset(np.sort(rng.permutation(len(faces))[:count]))
    crops = torch.from_numpy(training_crops(chosen, px, margin)).permute(0, 3, 1, 2)
    low = degrade(crops, px, margin, how, torch.Generator().manual_seed(seed))
    return np.ascontiguousarray((low * 255).round().byte().permute(0, 2, 3, 1).numpy())
