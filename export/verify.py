"""Are two photos of the same person? One artifact, two images, the threshold of its sidecar. Needs no torch."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click
import numpy as np

from export import crops, runtimes, usable
from export.runtimes import Artifact
from export.sidecar import Sidecar, Threshold
from faces.cli import run_cli
from faces.errors import UserError
from faces.sources.record import decode
from faces.verification import similarity


@dataclass(frozen=True)
class Verdict:
    """score: of `metric`, higher is more alike; threshold: score from which two faces are called the same person at
    the false match rate `fmr`; where there is none, it and `decision` are None and `reason` says why.

    measured: the protocol and data that the threshold comes from. caution: what speaks against the file itself.
    """

    score: float
    metric: str
    threshold: float | None
    decision: Literal["same", "different"] | None
    fmr: str
    reason: str | None
    measured: str | None
    caution: str | None


def verify(
    artifact: Artifact,
    first: Path,
    second: Path,
    fmr: str = "1e-3",
    detector: str = "dlib",
    *,
    aligned: bool = False,
) -> Verdict:
    """Compare the largest face of two image files, cut as the artifact's sidecar says.

    The threshold was measured on faces at the protocol's size: it says little about photos of another kind.
    `aligned` takes the images as ArcFace crops. Raises UserError naming the image where it cannot be read or shows no
    face, and before, on a rate that the sidecar does not have and on a file that takes an alpha with each face.
    """
    contract = artifact.sidecar
    usable.check(contract)
    rate, threshold = _threshold(contract, fmr)
    faces = [_face(path, detector, aligned) for path in (first, second)]
    images, landmarks = (np.stack(part) for part in zip(*faces, strict=True))
    embeddings = artifact.embed(crops.model_crops(images, landmarks, contract))
    score = float(similarity(embeddings[:1], embeddings[1:], contract.metric)[0])
    if not math.isfinite(score):
        raise UserError(f"{artifact.path}: its embeddings are not finite numbers")
    if threshold is None:
        none = "the sidecar holds no thresholds"
        return Verdict(score, contract.metric, None, None, rate, none, None, usable.caution(contract))
    value = threshold.value
    return Verdict(
        score=score,
        metric=contract.metric,
        threshold=value,
        decision=None if value is None else "same" if score >= value else "different",
        fmr=rate,
        reason=threshold.reason if value is None else None,
        measured=f"{threshold.protocol} on {threshold.data}, {threshold.impostor_pairs} impostor pairs",
        caution=usable.caution(contract),
    )


def _threshold(contract: Sidecar, fmr: str) -> tuple[str, Threshold | None]:
    """The rate as the sidecar writes it (0.001 is 1e-3) and its threshold; None where the sidecar has none at all."""
    rate = _rate(fmr)
    if not 0 < rate < 1:
        raise UserError(f"a false match rate lies between 0 and 1, such as 1e-3; got {fmr!r}")
    for name, threshold in contract.thresholds.items():
        if math.isclose(_rate(name), rate):
            return name, threshold
    if contract.thresholds:
        raise UserError(f"{contract.file} has no threshold at FMR {fmr}. It has: {', '.join(contract.thresholds)}")
    return fmr, None


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _face(path: Path, detector: str, aligned: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        image = decode(path.read_bytes())
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror}") from None
    if image is None:
        raise UserError(f"{path}: no image that can be read")
    found = crops.loose(image, detector, aligned)
    if found is None:
        raise UserError(f"{path}: no face found; an image that is an aligned face already: --aligned")
    return found


@click.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("first", metavar="A.jpg", type=click.Path(path_type=Path))
@click.argument("second", metavar="B.jpg", type=click.Path(path_type=Path))
@click.option("--fmr", default="1e-3", show_default=True, help="False match rate that the decision may cost.")
@click.option("--detector", default="dlib", show_default=True, help="dlib or yunet:FILE.")
@click.option("--aligned", is_flag=True, help="The images are ArcFace crops already.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@run_cli
def verify_command(
    artifact: Path, first: Path, second: Path, fmr: str, detector: str, aligned: bool, as_json: bool
) -> None:
    """Do two photos show the same person? ARTIFACT is an exported file with its sidecar beside it."""
    verdict = verify(runtimes.load(artifact), first, second, fmr, detector, aligned=aligned)
    if as_json:
        click.echo(json.dumps(asdict(verdict), allow_nan=False))
        return
    none = f"none: {verdict.reason}"
    words = {"same": "same person", "different": "different people", None: none}
    # Six digits, so that a score just below the threshold does not look like one at it.
    click.echo(f"score      {verdict.score:.6f} ({verdict.metric})")
    click.echo(f"threshold  {none if verdict.threshold is None else f'{verdict.threshold:.6f}'}")
    click.echo(f"decision   {words[verdict.decision]}")
    click.echo(f"FMR        {verdict.fmr}" + (f" ({verdict.measured})" if verdict.measured else ""))
    if verdict.caution:
        click.echo(f"caution    {verdict.caution}")
