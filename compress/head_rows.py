"""A softmax layer for the people of a target set: on a student as it is, or on one trained from scratch there."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.config import Config, Distill
from compress.distill import prepare, start_student
from compress.rows import read_row, row_file, write_row
from export.kit import degraded_crops, student_crops
from export.stage import reference_embeddings
from faces.dataset import Faces
from faces.errors import UserError
from faces.files import sha256
from faces.threads import threads
from students.student import Student
from students.train import train_student

AS_IS, FINETUNED, SCRATCH = "as it is", "head fine-tuned", "from scratch"
VERSIONS = 8
"""What the softmax layer is fitted to: each face as it is, and seven degraded versions of it."""
RIDGE = 1e-3
_SPLIT = 707


@dataclass(frozen=True)
class Target:
    """P people of a set. learn: (P, K) indices of the images that may be learnt from, the first ones first; test: (T,)
    those of all others, and person: (T,) which of the people each shows."""

    faces: Faces
    names: tuple[str, ...]
    learn: np.ndarray
    test: np.ndarray
    person: np.ndarray


def affordable(faces: Faces, wanted: Sequence[int], people: int) -> list[int]:
    """Which numbers of training images a person leave so many people an image to be tested on."""
    counts = np.bincount(faces.identities[faces.labelled])
    return [count for count in wanted if (counts > count).sum() >= people]


def split_images(faces: Faces, most: int) -> Target:
    """The people with more than `most` images: so many to learn from, the rest to test on. Closed-set: the paper says
    both "180 subjects" and "exclusive", but a softmax layer knows no others than those it was trained on.

    UserError where fewer than two people have as many.
    """
    rng = np.random.default_rng(_SPLIT)
    learn, test, person = [], [], []
    names: list[str] = []
    for number, name in enumerate(faces.names):
        images = rng.permutation(np.flatnonzero(faces.identities == number))
        if len(images) > most:
            learn.append(images[:most])
            test.append(images[most:])
            person.append(np.full(len(images) - most, len(names)))
            names.append(name)
    if len(names) < 2:
        raise UserError(
            f"{faces.source}: {len(names)} people have more than {most} images; name at least two people apart with "
            "fewer --images, or give more faces"
        )
    return Target(faces, tuple(names), np.stack(learn), np.concatenate(test), np.concatenate(person))


def fit_head(features: np.ndarray, labels: np.ndarray) -> nn.Linear:
    """A softmax layer on features (N, D), fitted to labels (N,) while the network stays as it is.

    Cross-entropy and RIDGE / 2 times the squared weights on standardised features: convex, so there is nothing to draw.
    """
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    mean = x.mean(0)
    scale = (x - mean).norm(dim=1).mean() / features.shape[1] ** 0.5
    inputs = (x - mean) / scale
    layer = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(layer(inputs), y) + RIDGE / 2 * layer.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        # So that it takes the features as they are.
        layer.weight.div_(scale)
        layer.bias.sub_(layer.weight @ mean)
    return layer


def ranks(scores: np.ndarray, person: np.ndarray) -> np.ndarray:
    """How many other people score as high as the right one or higher, (T,) int64; scores: (T, P)."""
    right = np.take_along_axis(scores, person[:, None], 1)
    return (scores >= right).sum(1) - 1


class Heads:
    """One row's work for a target; what is done lies in `folder`/rows."""

    def __init__(self, config: Config, target: Target, folder: Path) -> None:
        self.config, self.target, self.folder = config, target, folder

    def path(self, row: str, weights: Path | None, images: int, seed: int) -> Path:
        """Where a row is kept; weights: of the student, None from scratch."""
        how = self._how(None)
        made = [
            row, how.student, [how.margin, how.degradation, sha256(weights)] if weights else how, images, seed,
            VERSIONS, RIDGE, self.target.faces.state(), self.target.learn.tolist(),
        ]  # fmt: skip
        return row_file(self.folder, made, "head", row, images, seed)

    def read(self, row: str, weights: Path | None, images: int, seed: int) -> dict[str, np.ndarray] | None:
        """What `run` kept: ranks (T,), and of a fitted layer weight (P, D) and bias (P,)."""
        return read_row(self.path(row, weights, images, seed))

    def run(self, row: str, weights: Path | None, images: int, seed: int) -> None:
        """Fit and test, unless that was done."""
        path = self.path(row, weights, images, seed)
        if path.is_file():
            return
        learn = self._learn(images, seed)
        labels = np.arange(len(learn)).repeat(images)
        faces = dataclasses.replace(self.target.faces.subset(learn.ravel()), identities=labels, names=self.target.names)
        with threads(1):
            student = self._student(faces, weights, seed)
            px = student.input_px
            test = reference_embeddings(student, student_crops(self.target.faces.subset(self.target.test), px, px))
            if row == AS_IS:
                own = _unit(reference_embeddings(student, student_crops(faces, px, px)))
                means = own.reshape(*learn.shape, -1).mean(1)
                kept = {"ranks": ranks(_unit(test) @ _unit(means).T, self.target.person)}
            else:
                seen = self._versions(student, faces, seed)
                layer = fit_head(seen, np.tile(labels, VERSIONS))
                weight, bias = (one.detach().numpy() for one in (layer.weight, layer.bias))
                kept = {"ranks": ranks(test @ weight.T + bias, self.target.person), "weight": weight, "bias": bias}
        write_row(path, kept)

    def _learn(self, images: int, seed: int) -> np.ndarray:
        """(P, images) of the images that may be learnt from: each seed draws others."""
        rng = np.random.default_rng([seed, _SPLIT])
        return rng.permuted(self.target.learn, axis=1)[:, :images]

    def _how(self, weights: Path | None) -> Distill:
        return dataclasses.replace(self.config.distill, mode="c", weights=None if weights is None else str(weights))

    def _student(self, faces: Faces, weights: Path | None, seed: int) -> Student:
        how = self._how(weights)
        student = start_student(how, seed)
        if weights is None:
            examples = prepare(faces, None, how, student.input_px, seed, self.folder)
            train_student(student, examples, how, seed, self.config.device)
        return student

    def _versions(self, student: Student, faces: Faces, seed: int) -> np.ndarray:
        """(VERSIONS x N, D): the features of the faces, version by version."""
        how, px = self.config.distill, student.input_px
        crops = [student_crops(faces, px, px)]
        crops += [
            degraded_crops(faces, px, len(faces), how.margin, how.degradation, seed * VERSIONS + version)
            for version in range(1, VERSIONS)
        ]
        return np.concatenate([reference_embeddings(student, one) for one in crops])


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
