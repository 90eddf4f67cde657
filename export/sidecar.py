"""The JSON beside every artifact: how to feed it, how to judge its output, where it comes from."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from faces.errors import UserError
from faces.files import sha256, write_json
from faces.verification import MIN_FALSE_MATCHES, Roc

SCHEMA: Literal[1] = 1
FMRS = ("1e-2", "1e-3", "1e-4")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Input(_Part):
    """The tensor the file itself takes: `null` in `shape` is a free batch size, `range` is of its values."""

    name: str
    shape: tuple[PositiveInt | None, PositiveInt, PositiveInt, PositiveInt]
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32"] = "float32"
    range: tuple[float, float] = (0.0, 1.0)
    colour: Literal["RGB"] = "RGB"

    @property
    def px(self) -> int:
        """Side of the square face, pixels."""
        return self.shape[2]


class Crop(_Part):
    """The aligned crop: template name and its five points, (x, y) pixels at the input size.

    Left eye, right eye, nose tip, left mouth corner, right mouth corner, as seen in the image.
    """

    template: str
    template_px: PositiveInt
    """Side of the aligned crop that the input is reduced from."""
    resampling: str
    """How it is reduced: another way gives other scores, and the thresholds no longer hold."""
    points: tuple[tuple[float, float], ...]


class Threshold(_Part):
    """Score from which two faces are called the same person at one false match rate; null with its reason."""

    value: float | None
    reason: str | None
    genuine_pairs: int
    impostor_pairs: int
    protocol: str
    data: str


class Parity(_Part):
    """The artifact's embeddings against the model's on the same faces; `max_abs` null where not finite."""

    max_abs: float | None
    cosine_min: float | None
    faces: int
    passed: bool | None
    reason: str


class Teacher(_Part):
    """Where the model learned; `bootstrap` = fitted to another network's embeddings, not trained itself."""

    name: str
    bootstrap: bool
    licence: str


class Data(_Part):
    """The faces the model was trained on."""

    name: str
    licence: str


class Card(_Part):
    """What the caller of an export knows and the model cannot tell."""

    model: str
    template: str
    metric: Literal["cosine", "euclidean"]
    teacher: Teacher | None
    data: Data | None
    thresholds: dict[str, Threshold]
    parameters: int
    macs: int
    """Multiply-accumulates of one face; a multiply and an add count as one."""


class Sidecar(_Part):
    """All of it. Scores of `metric`: cosine, or the negated euclidean distance; higher is more alike."""

    schema_version: Literal[1] = SCHEMA
    file: str
    bytes: int
    sha256: str
    format: Literal["onnx", "tflite"]
    precision: Literal["fp32"]
    opset: int | None
    model: str
    parameters: int
    macs: int
    input: Input
    crop: Crop
    output: str
    embedding_dim: PositiveInt
    metric: Literal["cosine", "euclidean"]
    thresholds: dict[str, Threshold]
    parity: Parity
    parity_failure_allowed: bool
    teacher: Teacher | None
    data: Data | None
    versions: dict[str, str]


def path_of(artifact: str | Path) -> Path:
    """`student.onnx` -> `student.onnx.json`."""
    return Path(f"{artifact}.json")


def write(artifact: str | Path, sidecar: Sidecar) -> None:
    """Write `sidecar` beside the artifact's path, whole."""
    write_json(path_of(artifact), sidecar.model_dump(mode="json"))


def read(artifact: str | Path) -> Sidecar:
    """The sidecar of an artifact, checked against the artifact's size and SHA-256.

    Raises UserError where either file is missing, the JSON is none of ours, or the artifact is not the file
    that the sidecar was written for.
    """
    artifact = Path(artifact)
    if not artifact.is_file():
        raise UserError(f"{artifact}: no such file")
    file = path_of(artifact)
    try:
        text = file.read_bytes()
    except OSError as problem:
        raise UserError(
            f"{artifact}: its sidecar {file.name} cannot be read ({problem.strerror}); export writes both"
        ) from None
    try:
        sidecar = Sidecar.model_validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file}: not a sidecar of schema {SCHEMA}: {where} {first['msg']}") from None
    size = artifact.stat().st_size
    if size != sidecar.bytes:
        raise UserError(f"{artifact}: {size} bytes, but its sidecar names {sidecar.bytes}; export it again")
    digest = sha256(artifact)
    if digest != sidecar.sha256:
        raise UserError(
            f"{artifact}: SHA-256 {digest[:12]}, but its sidecar names {sidecar.sha256[:12]}; export it again"
        )
    return sidecar


def thresholds(roc: Roc, protocol: str, data: str) -> dict[str, Threshold]:
    """Thresholds at the false match rates 1e-2, 1e-3 and 1e-4, from all pairs of a test set.

    A rate at which fewer than ten false matches are expected has no value: it would hang on single pairs.
    """
    found = {}
    for fmr in FMRS:
        value = roc.threshold_at(float(fmr))
        reason = None
        if value is None:
            expected = float(fmr) * len(roc.impostor)
            reason = (
                f"{len(roc.impostor)} impostor pairs: {expected:.3g} false matches expected at FMR {fmr}, "
                f"{MIN_FALSE_MATCHES} are needed"
            )
        found[fmr] = Threshold(
            value=value,
            reason=reason,
            genuine_pairs=len(roc.genuine),
            impostor_pairs=len(roc.impostor),
            protocol=protocol,
            data=data,
        )
    return found
