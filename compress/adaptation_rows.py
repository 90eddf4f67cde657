"""Step 1 of bridge distillation with and without its parts: the cases of the paper's Figure 3, row by row."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import nn

from compress.adapt import fit_classifiers, fit_softmax
from compress.config import Adapt, Config
from compress.distill import own_features, prepare, start_student, weights_file
from compress.part_scores import teacher_features
from compress.rows import read_row, row_file, write_row
from compress.run import progress_bar
from export.kit import student_crops
from export.stage import reference_embeddings
from faces.dataset import Faces
from faces.errors import UserError
from faces.parts import Part
from faces.threads import threads
from faces.verification import similarity
from students.train import train_student
from teachers.registry import weight_files

_SPLIT_SEED = 606


@dataclass(frozen=True)
class Case:
    """mode: of the student; adapt: changes of step 1; private: step 1 sees the private people too; teacher: is there
    one?"""

    name: str
    mode: Literal["c", "dc", "sc"] = "sc"
    adapt: dict[str, Any] = field(default_factory=dict)
    private: bool = False
    teacher: bool = True


PROPOSED = "proposed"
CASES = (
    Case("no cross-dataset step", "dc"),
    Case("compression without distillation", adapt={"balance": 0.0, "keep": 0.0}),
    Case("proposed, equation 1 alone", adapt={"keep": 0.0}),
    Case(PROPOSED),
    Case("mixed", private=True),
    Case("labels alone", "c", teacher=False),
)
"""Figure 3's four, and two more: `proposed` keeps the teacher's similarities beside equation 1, as this project does
(`adapt.keep`); `labels alone` is the student without a teacher (mode c)."""


@dataclass(frozen=True)
class Split:
    """learn: public faces that everything is trained on; held: other images of the same people, for the closed set;
    private: faces of other people, which `mixed` alone sees. Indices of the training faces, sorted."""

    learn: np.ndarray
    held: np.ndarray
    private: np.ndarray


def split_faces(faces: Faces) -> Split:
    """Half of the people are private; of each public one a fifth of the images is held out, but one remains.

    Faces without a label are public. UserError where fewer than four people are known or none of the public ones has
    three images.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    people = rng.permutation(np.unique(faces.identities[faces.labelled]))
    if len(people) < 4:
        raise UserError(f"{faces.source} names {len(people)} people; the study of the adaptation needs at least 4")
    private = np.isin(faces.identities, people[: len(people) // 2])
    held = np.zeros(len(faces), dtype=bool)
    for person in people[len(people) // 2 :]:
        images = rng.permutation(np.flatnonzero(faces.identities == person))
        held[images[: round(0.2 * len(images))]] = True
    if not held.any():
        raise UserError(f"{faces.source} has too few images a person: nobody has three, so none can be held out")
    return Split(np.flatnonzero(~private & ~held), np.flatnonzero(held), np.flatnonzero(private))


class Study:
    """faces: to learn from, split by `split`; parts: unseen people. A finished row lies in `folder`/rows."""

    def __init__(self, config: Config, faces: Faces, parts: list[Part], folder: Path) -> None:
        self.config, self.faces, self.parts, self.folder = config, faces, parts, folder
        self.split = split_faces(faces)
        public = np.union1d(self.split.learn, self.split.held)
        # Numbered over all public people: each of them has a face to learn from.
        self.labels = np.full(len(faces), -1, dtype=np.int64)
        self.labels[public] = faces.subset(public).identities
        self.learn = faces.subset(self.split.learn)

    def path(self, case: Case, teacher: str, seed: int) -> Path:
        how = dataclasses.replace(self.config.distill, mode=case.mode)
        made = [
            teacher if case.teacher else None,
            dataclasses.asdict(dataclasses.replace(self.config.adapt, **case.adapt)),
            dataclasses.asdict(how),
            case.private,
            seed,
            self.faces.state(),
            [part.state() for part in self.parts],
        ]
        files = [*(weight_files(teacher) if case.teacher else []), weights_file(how)]
        return row_file(self.folder, made, "adaptation", case.name, seed, files=filter(None, files))

    def read(self, case: Case, teacher: str, seed: int) -> dict[str, np.ndarray] | None:
        """What `run` kept, None where it has not run: scores of pairs by `PART/PROTOCOL` (P,), and whether each face of
        the closed set was recognised, by `closed-set/PROTOCOL` (M,)."""
        return read_row(self.path(case, teacher, seed))

    def run(self, case: Case, teacher: str, seed: int) -> None:
        """Adapt, distil and measure, unless that was done."""
        path = self.path(case, teacher, seed)
        if path.is_file():
            return
        features, shown = None, {}
        if case.teacher:
            features = teacher_features(teacher, self.faces, self.folder)
            shown = {part.name: teacher_features(teacher, part.faces, self.folder) for part in self.parts}
        with threads(1):
            targets, gallery, kept = None, {}, {}
            if features is not None and case.mode == "dc":
                targets, mean = own_features(features[self.split.learn]), features[self.split.learn].mean(0)
                gallery = {name: values - mean for name, values in shown.items()}
                kept["closed-set/full"] = self._recognised(features, seed)
            elif features is not None:
                targets, gallery, kept["closed-set/full"] = self._adapted(case, features, shown, seed)
            how = dataclasses.replace(self.config.distill, mode=case.mode)
            student = start_student(how, seed)
            px = student.input_px
            examples = prepare(self.learn, targets, how, px, seed, self.folder)
            with progress_bar(Console(stderr=True), f"{case.name}, seed {seed}", how.steps) as advance:
                train_student(student, examples, how, seed, self.config.device, progress=advance)
            low = np.zeros((len(self.faces), student.mimic.out_features), np.float32)
            public = np.flatnonzero(self.labels >= 0)
            low[public] = reference_embeddings(student, student_crops(self.faces.subset(public), px, px))
            kept[f"closed-set/{px} px"] = self._recognised(low, seed)
            for part in self.parts:
                a, b = part.pairs.a, part.pairs.b
                small = reference_embeddings(student, student_crops(part.faces, px, px))
                kept[f"{part.name}/same@{px}"] = similarity(small[a], small[b], "cosine")
                # A student of other width than its target has no common space with it.
                if part.name in gallery and gallery[part.name].shape[1] == small.shape[1]:
                    kept[f"{part.name}/cross@{px}"] = similarity(gallery[part.name][a], small[b], "cosine")
        write_row(path, kept)

    def _adapted(
        self, case: Case, features: np.ndarray, shown: dict[str, np.ndarray], seed: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Targets of `learn`, the adapted features of each part, and whom the adaptation's classifier recognised."""
        learn, held, private = self.split.learn, self.split.held, self.split.private
        seen, labels = learn, self.labels.copy()
        if case.private:
            seen = np.concatenate([learn, private])
            labels[private] = self.labels.max() + 1 + self.faces.subset(private).identities
        how = dataclasses.replace(self.config.adapt, **case.adapt)
        adapter, _, classifier = fit_classifiers(features[seen], labels[seen], how, seed)
        with torch.no_grad():
            named = classifier(adapter(torch.from_numpy(features[held]))).argmax(1).numpy()
        gallery = {name: adapter.targets(values) for name, values in shown.items()}
        return adapter.targets(features[learn]), gallery, named == self.labels[held]

    def _recognised(self, features: np.ndarray, seed: int) -> np.ndarray:
        """Which held-out faces a softmax layer recognises, (M,) bool, that is fitted to `learn`. features: (N, D), of
        all training faces."""
        learn, held = self.split.learn, self.split.held
        return softmax_recognises(
            features[learn], self.labels[learn], features[held], self.labels[held], self.config.adapt, seed
        )


def softmax_recognises(
    features: np.ndarray, labels: np.ndarray, held: np.ndarray, wanted: np.ndarray, how: Adapt, seed: int
) -> np.ndarray:
    """Fit a softmax layer to features (N, D) and labels (N,), -1 = left out: is each of `held` (M, D) given its label,
    (M,) bool? The features are standardised as in the adaptation, by those of labelled faces alone."""
    features, labels = features[labels >= 0], labels[labels >= 0]
    x, mean = torch.from_numpy(features), torch.from_numpy(features.mean(0))
    scale = (x - mean).norm(dim=1).mean() / features.shape[1] ** 0.5
    torch.manual_seed(seed)
    layer = nn.Linear(features.shape[1], int(labels.max()) + 1)
    fit_softmax(layer, (x - mean) / scale, torch.from_numpy(labels), how, seed)
    with torch.no_grad():
        return layer((torch.from_numpy(held) - mean) / scale).argmax(1).numpy() == wanted
