"""A stand-in teacher for a backbone whose face-recognition weights are not at hand.

The backbone keeps random weights; its last linear layer and batch norms are replaced by one linear layer to
128 dimensions, fitted in closed form (ridge regression in its dual form) so that the embeddings follow those
of a reference teacher. It is good enough to exercise everything behind it, it is no recognition network,
and whoever uses it must say so.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from faces.align import crop
from faces.dataset import Faces
from faces.errors import UserError
from faces.files import fingerprint, whole
from teachers.backbones.bootstrap import Bootstrap

if TYPE_CHECKING:
    from teachers.registry import Teacher

MOST_VIEWS = 3000
DEFAULT_VIEWS = 1200
# A third round, with jittered landmarks, recognised no more people of ten splits of the ORL faces.
MOST_ROUNDS = 2
# Ridge strength as a share of the Gram matrix's mean diagonal; people left out of the training side are told apart
# equally well from .01 to .3.
RIDGE = 0.1
_CHUNK, _BATCH = 64, 16


def view_count(faces: int, views: int = DEFAULT_VIEWS) -> int:
    """How many views `fit_bootstrap` uses of so many faces: whole rounds of all faces, at least one."""
    views = min(views, MOST_VIEWS)
    return views if faces > views else faces * min(views // faces, MOST_ROUNDS)


def fit_bootstrap(
    teacher: "Teacher",
    faces: Faces,
    reference: "Teacher",
    cache: Path,
    views: int = DEFAULT_VIEWS,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fit the linear layer of a bootstrap teacher, in place, to the reference's embeddings of the same faces.

    Views: each face as it is, then mirrored (`view_count` says how many; of more faces than views a random part
    is used). `cache`: a folder for the features, written in chunks, from which a killed fit continues; it may be
    deleted afterwards (77 kB a view). `progress` is called with the number of views just finished or found. Raises
    UserError where `teacher` is no bootstrap or fewer than two faces are given.
    """
    bootstrap = teacher.backbone
    if not isinstance(bootstrap, Bootstrap):
        raise UserError(f"{teacher.name} has weights from {teacher.source}; only a bootstrap is fitted")
    if len(faces) < 2:
        raise UserError(f"a bootstrap teacher needs at least 2 faces, {faces.source} gave {len(faces)}")
    inputs, chips = _views(faces, [teacher, reference], view_count(len(faces), views), seed)
    targets = face_targets(reference.embed(chips), rounds=max(1, len(inputs) // len(faces)))
    features = _cached_features(bootstrap, inputs, cache, progress)
    weight, bias = dual_ridge(features, targets, RIDGE)
    with torch.no_grad():
        bootstrap.head.weight.copy_(torch.from_numpy(weight.T))
        bootstrap.head.bias.copy_(torch.from_numpy(bias))
    bootstrap.fitted = True
    teacher.licence = f"random weights fitted to {reference.name} ({reference.licence})"
    teacher.source = f"bootstrap, {len(inputs)} views of {faces.source} fitted to {reference.name}"


def face_targets(embeddings: NDArray[np.floating], rounds: int) -> NDArray[np.float64]:
    """What each view is fitted to: its face's mean embedding over the rounds, centred, of length 1.

    embeddings: (rounds * n, k), round by round; returns the same shape. Views of one face share a target, so
    that the fit also learns what does not matter.
    """
    mean = np.asarray(embeddings, np.float64).reshape(rounds, -1, embeddings.shape[1]).mean(0)
    mean -= mean.mean(0)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    return np.tile(mean, (rounds, 1))


def dual_ridge(
    features: NDArray[Any], targets: NDArray[np.floating], strength: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Ridge regression of centred targets (n, k) on centred features (n, d): weight (d, k), bias (k,).

    Solved through the n x n Gram matrix, as d is much larger than n; `strength` is relative to its mean
    diagonal. The bias centres the features only: the targets' mean, which all faces share, is left out, as
    it makes every cosine large.
    """
    x = torch.from_numpy(np.asarray(features, np.float32))
    mean = x.mean(0)
    x = x - mean
    gram = (x @ x.T).double()
    y = torch.from_numpy(np.asarray(targets, np.float64))
    gram.diagonal().add_(strength * gram.diagonal().mean())
    dual = torch.linalg.solve(gram, y - y.mean(0))
    weight = x.T @ dual.float()
    return weight.numpy(), -(mean @ weight).numpy()


def _views(faces: Faces, teachers: "list[Teacher]", count: int, seed: int) -> list[NDArray[np.uint8]]:
    """The same `count` views as crops for each teacher: [(count, side, side, 3), ...]."""
    chosen = np.sort(np.random.default_rng([seed, 303]).permutation(len(faces))[:count])
    views = []
    for teacher in teachers:
        crops = crop(faces.images[chosen], faces.landmarks[chosen], teacher.template, teacher.input_px)
        rounds = [crops, crops[:, :, ::-1]][: count // len(chosen)]
        views.append(np.ascontiguousarray(np.concatenate(rounds)))
    return views


def _cached_features(
    bootstrap: Bootstrap, images: NDArray[np.uint8], cache: Path, progress: Callable[[int], None] | None
) -> NDArray[np.float16]:
    """Features (N, d) of the crops, each chunk read from `cache` where it is there, else written to it."""
    folder = cache / fingerprint([bootstrap.fingerprint(), hashlib.sha256(images.data).hexdigest()])
    folder.mkdir(parents=True, exist_ok=True)
    features = np.empty((len(images), bootstrap.net.features_dim), np.float16)
    device = next(bootstrap.parameters()).device
    for start in range(0, len(images), _CHUNK):
        chunk, file = images[start : start + _CHUNK], folder / f"{start:06d}.npy"
        if file.exists():
            part = np.load(file, allow_pickle=False)
        else:
            x = torch.from_numpy(chunk).to(device).permute(0, 3, 1, 2).float().div_(255)
            with torch.inference_mode():
                part = torch.cat([bootstrap.features(some) for some in x.split(_BATCH)]).half().cpu().numpy()
            with whole(file) as temporary:
                np.save(temporary, part)
        features[start : start + _CHUNK] = part
        if progress is not None:
            progress(len(chunk))
    return features
