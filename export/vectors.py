"""Faces with their landmarks, crops and embeddings as JSON: what ports of this code to other languages are held to.

Needs no torch.
"""

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from export import crops, runtimes
from export.runtimes import Artifact
from faces import align
from faces.cli import Output, run_cli
from faces.errors import UserError
from faces.files import write_json
from faces.sources import orl
from faces.sources.record import decode
from faces.verification import similarity_matrix

SCHEMA = 1
SLIDER = (96, 64, 32, 16)
"""Sizes, px, to which a demo's slider reduces the aligned crop before the network's own reduction."""

_ENLARGED, _TURNED = 2.5, 17.0
"""A photo whose crop needs area averaging (reduced by more than two) and a rotation, degrees."""


@dataclass(frozen=True)
class Photo:
    """image: (H, W, 3) uint8 RGB; landmarks: (5, 2) float64 in it, NaN where unknown."""

    key: str
    identity: str
    image: np.ndarray
    landmarks: np.ndarray


def photos(people: int) -> Iterator[Photo]:
    """Two photos each of the first `people` people of ORL, three kinds in turn: as it is, enlarged and turned, and
    with all five points known (the mouth placed where the template has it)."""
    detect = align.create_detector("dlib")
    left: dict[str, int] = {}
    for record in orl.read():
        identity = str(record.identity)
        if left.setdefault(identity, 2) == 0 or len(left) > people:
            continue
        image = decode(record.data)
        landmarks = None if image is None else detect(image)
        if image is None or landmarks is None:
            continue
        turn = (2 * (len(left) - 1) + 2 - left[identity]) % 3
        left[identity] -= 1
        if turn == 1:
            image, landmarks = _enlarge(image, landmarks)
        elif turn == 2:
            landmarks = _with_mouth(landmarks)
        # Rounded before any use, so that the file holds the very numbers that were computed with.
        yield Photo(record.key, identity, image, landmarks.round(4))


def _enlarge(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = (round(side * _ENLARGED) for side in image.shape[:2])
    matrix = cv2.getRotationMatrix2D((image.shape[1] / 2, image.shape[0] / 2), _TURNED, _ENLARGED)
    centred = matrix[:, 2] + np.array([width - image.shape[1], height - image.shape[0]]) / 2
    matrix = np.column_stack([matrix[:, :2], centred])
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return turned, landmarks @ matrix[:, :2].T + matrix[:, 2]


def _with_mouth(landmarks: np.ndarray) -> np.ndarray:
    points = align.TEMPLATES["arcface"][1].astype(np.float64)
    matrix = align.similarity(points, landmarks)
    return np.where(np.isfinite(landmarks), landmarks, points @ matrix[:, :2].T + matrix[:, 2])


def vectors(artifacts: list[Artifact], people: int) -> dict[str, Any]:
    """The JSON object. UserError where the artifacts do not see the same crop or take an alpha."""
    contract = artifacts[0].sidecar
    for one in artifacts:
        crops.check(one.sidecar)
        if (one.sidecar.crop, one.sidecar.input.px) != (contract.crop, contract.input.px):
            raise UserError(f"{one.path} sees another crop than {artifacts[0].path}: make vectors of each alone")
        if one.sidecar.takes_alpha:
            raise UserError(f"{one.path} takes an alpha with each face: vectors are of plain embedders")
    found = list(photos(people))
    loose = [align.loose_crop(photo.image, photo.landmarks) for photo in found]
    images, landmarks = (np.stack(part) for part in zip(*loose, strict=True))
    aligned = align.crop(images, landmarks, contract.crop.template, contract.crop.template_px)
    seen = crops.model_crops(images, landmarks, contract)
    # What the slider leaves the network: sizes below its input give a coarser face, the others nearly the same one.
    reduced = {str(px): crops.resize(crops.resize(aligned, px), contract.input.px) for px in SLIDER}
    return {
        "schema_version": SCHEMA,
        "template": contract.crop.template,
        "template_px": contract.crop.template_px,
        "input_px": contract.input.px,
        "loose_px": images.shape[1],
        "faces": [
            {
                "key": photo.key,
                "identity": photo.identity,
                "image": {"width": photo.image.shape[1], "height": photo.image.shape[0], "rgb": _bytes(photo.image)},
                "landmarks": _points(photo.landmarks),
                "loose": {"rgb": _bytes(images[i]), "landmarks": _points(landmarks[i])},
                "aligned": _bytes(aligned[i]),
                "crop": _bytes(seen[i]),
                "reduced": {px: _bytes(part[i]) for px, part in reduced.items()},
            }
            for i, photo in enumerate(found)
        ],
        "artifacts": [_embedded(one, seen) for one in artifacts],
    }


def _embedded(artifact: Artifact, seen: np.ndarray) -> dict[str, Any]:
    # One face at a time, as a camera brings them.
    embeddings = artifact.embed(seen, batch=1)
    if not np.isfinite(embeddings).all():
        raise UserError(f"{artifact.path}: its embeddings are not finite numbers")
    return {
        "file": artifact.path.name,
        "sha256": artifact.sidecar.sha256,
        "precision": artifact.sidecar.precision,
        "runtime": artifact.runtime,
        "metric": artifact.sidecar.metric,
        "embeddings": embeddings.tolist(),
        "scores": {
            metric: similarity_matrix(embeddings.astype(np.float64), embeddings.astype(np.float64), metric).tolist()
            for metric in ("cosine", "euclidean")
        },
    }


def _bytes(array: np.ndarray) -> str:
    """Base64 of the bytes, row by row, R G B."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=np.uint8).tobytes()).decode()


def _points(points: np.ndarray) -> list[list[float] | None]:
    return [None if math.isnan(x) else [float(x), float(y)] for x, y in points]


@click.command("vectors")
@click.argument("artifacts", metavar="ARTIFACT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=Output(".json"), required=True, help="The .json file to write.")
@click.option("--people", type=click.IntRange(2, 40), default=6, show_default=True, help="People; two faces of each.")
@run_cli
def vectors_command(artifacts: tuple[Path, ...], out: Path, people: int) -> None:
    """Write faces, landmarks, crops, embeddings and scores of the ORL faces by each ARTIFACT as JSON.

    A port of cropping, alignment and comparison to another language is right where it gives the same.
    """
    value = vectors([runtimes.load(path) for path in artifacts], people)
    write_json(out, value)
    click.echo(f"{out}: {len(value['faces'])} faces, {len(value['artifacts'])} artifacts")
