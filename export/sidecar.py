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
    """The tensor the file itself takes: `null` in `shape` is a free batch size, `range` is of its values.

    An integer input q stands for (q - zero_point) * scale in [0, 1]: with scale 1/255 and zero point 0 it is the
    camera's byte itself. For floats both are null.
    """

    name: str
    shape: tuple[PositiveInt | None, PositiveInt, PositiveInt, PositiveInt]
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "uint8", "int8"] = "float32"
    range: tuple[float, float] = (0.0, 1.0)
    colour: Literal["RGB"] = "RGB"
    scale: float | None = None
    zero_point: int | None = None

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
    """Pixel centres lie at whole numbers, here and in `stored_points`."""
    stored_px: PositiveInt | None = None
    """Side of the crop that is cut from the photo first, and the template's from that (bilinear; a photo that would
    shrink to less than half is first reduced by area averaging to twice the crop's scale)."""
    stored_points: tuple[tuple[float, float], ...] | None = None
    """The five points in that crop."""


class Threshold(_Part):
    """Score from which two faces are called the same person at one false match rate; null with its reason."""

    value: float | None
    reason: str | None
    genuine_pairs: int
    impostor_pairs: int
    protocol: str
    data: str


class Gate(_Part):
    """Verification accuracy of the artifact against its model's, percent, on identical pairs."""

    protocol: str
    data: str
    pairs: int
    accuracy: float
    ci95: tuple[float, float]
    model: float
    difference: float
    """Artifact minus model, percentage points."""
    difference_ci95: tuple[float, float]
    decides: bool
    """Were there pairs enough (3,000 genuine) to judge by it?"""


class Parity(_Part):
    """The artifact's embeddings against the model's on the same faces; `max_abs` null where not finite, or where it
    cannot run here (`passed` is null then)."""

    max_abs: float | None
    cosine_min: float | None
    faces: int
    passed: bool | None
    reason: str
    accuracy: Gate | None = None


class Teacher(_Part):
    """Where the model learned; `bootstrap` = fitted to another network's embeddings, not trained itself."""

    name: str
    bootstrap: bool
    licence: str


class Data(_Part):
    """The faces the model was trained on."""

    name: str
    licence: str


class Price(_Part):
    """What one alpha for every image costs at one probe size: cosine of the merged network's embeddings to those by
    each image's own alpha, and verification accuracy, percent, on the same pairs (null without pairs)."""

    px: int | None
    cosine_least: float
    cosine_mean: float
    accuracy: float | None
    accuracy_per_image: float | None
    ci95: tuple[float, float] | None
    """Of their paired difference, percentage points."""
    pairs: int


class Alpha(_Part):
    """How the twin adapters' mixing weight left the model (PETALface). `input`: it is an input of the graph, one
    number an image, exact; else both branches are merged into the weights at `value`."""

    policy: Literal["gallery", "probe", "mean", "value", "input"]
    value: float | None
    input: str | None
    source: str
    """The faces whose quality gave the value, or that it was given."""
    price: tuple[Price, ...]


class Calibration(_Part):
    """The faces whose activations set the ranges of an int8 file."""

    faces: int
    source: str
    trained: bool
    """The weights were fine-tuned with the rounding in the loop (quantisation-aware)."""


class Engine(_Part):
    """What an engine was built for; it runs with this very version of the backend alone."""

    backend: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    targets: tuple[str, ...]
    """Compute capabilities such as `SM89`; for tensorrt the GPU that built it."""
    profile: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Least, usual and largest batch."""
    onnx: str
    onnx_sha256: str
    seconds: float
    """Of the build."""


class Card(_Part):
    """What the caller of an export knows and the model cannot tell."""

    model: str
    template: str
    metric: Literal["cosine", "euclidean"]
    teacher: Teacher | None
    data: Data | None
    parameters: int
    macs: int | None
    """Multiply-accumulates of one face; a multiply and an add count as one."""
    alpha: Alpha | None = None
    """Where the model has twin adapters."""


class Sidecar(_Part):
    """All of it. Scores of `metric`: cosine, or the negated euclidean distance; higher is more alike."""

    schema_version: Literal[1] = SCHEMA
    file: str
    bytes: int
    sha256: str
    format: Literal["onnx", "tflite", "tensorrt", "tensorrt-rtx"]
    precision: Literal["fp32", "fp16", "int8"]
    consumer: str | None = None
    """Which runtimes an int8 ONNX file is meant for: `cpu` (unsigned activations) or `tensorrt` (symmetric signed)."""
    opset: int | None
    ir_version: int | None = None
    model: str
    parameters: int
    macs: int | None
    input: Input
    crop: Crop
    output: str
    normalised: bool = False
    """Embeddings leave the file with length 1."""
    embedding_dim: PositiveInt
    metric: Literal["cosine", "euclidean"]
    thresholds: dict[str, Threshold]
    parity: Parity
    parity_failure_allowed: bool
    alpha: Alpha | None = None
    calibration: Calibration | None = None
    engine: Engine | None = None
    teacher: Teacher | None
    data: Data | None
    versions: dict[str, str]

    @property
    def takes_alpha(self) -> bool:
        """Does the file take a number with each image beside it?"""
        return self.alpha is not None and self.alpha.input is not None


def path_of(artifact: str | Path) -> Path:
    """`student.onnx` -> `student.onnx.json`."""
    return Path(f"{artifact}.json")


def write(artifact: str | Path, sidecar: Sidecar) -> None:
    """Write `sidecar` beside the artifact's path, whole."""
    write_json(path_of(artifact), sidecar.model_dump(mode="json"))


class Mismatch(UserError):
    """The artifact is not the file that its sidecar was written for."""


def read(artifact: str | Path, *, verify: bool = True) -> Sidecar:
    """The sidecar of an artifact, checked, with `verify`, against the artifact's size and SHA-256.

    Raises UserError where either file is missing or the JSON is none of ours, Mismatch, which is one, where the
    artifact is not the file that the sidecar was written for.
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
    if not verify:
        return sidecar
    size = artifact.stat().st_size
    if size != sidecar.bytes:
        raise Mismatch(f"{artifact}: {size} bytes, but its sidecar names {sidecar.bytes}; export it again")
    digest = sha256(artifact)
    if digest != sidecar.sha256:
        raise Mismatch(
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
