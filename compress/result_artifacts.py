"""The part of `results.json` that tells the exported files; see `compress.results`."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Name = Annotated[str, Field(min_length=1, max_length=10_000)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class Gate(Part):
    """Accuracy of an artifact against its model's on identical pairs, percent."""

    protocol: Name
    """E.g. `same@16`."""
    data: Name
    """Data set and part."""
    pairs: Count
    """Genuine and impostor pairs together."""
    accuracy: Percent
    """The artifact's."""
    ci95: Annotated[list[Percent], Field(min_length=2, max_length=2)]
    """Its 95% interval."""
    model: Percent
    """The model's."""
    difference: Annotated[float, Field(ge=-100, le=100)]
    """Artifact minus model, percentage points."""
    difference_ci95: Annotated[list[float], Field(min_length=2, max_length=2)]
    """95% interval of the paired difference."""
    decides: bool
    """Were there pairs enough to judge an int8 artifact by it?"""


class Price(Part):
    px: Count | None
    """Width of the probe face; null = full size."""
    cosine_least: Annotated[float, Field(ge=-1, le=1.000001)]
    """Of the merged teacher's embeddings to those by each image's own alpha."""
    cosine_mean: Annotated[float, Field(ge=-1, le=1.000001)]
    """Mean of it."""
    accuracy: Percent | None
    """Verification accuracy at the fixed alpha."""
    accuracy_per_image: Percent | None
    """At each image's own."""
    ci95: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    """95% interval of their paired difference, percentage points."""
    pairs: Count
    """Pairs compared."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len({one is None for one in (self.accuracy, self.accuracy_per_image, self.ci95)}) > 1:
            raise ValueError("accuracy, accuracy_per_image and ci95 are measured together or not at all")
        return self


class Alpha(Part):
    """How the exported teacher mixes its twin adapters."""

    policy: Name
    """gallery, probe, mean, value or input."""
    value: Fraction | None
    """The alpha that both branches are merged at; null where it stays an input."""
    input: str | None
    """Name of the graph's input, where it stays one."""
    source: Name
    """The faces that gave the value."""
    price: list[Price]
    """What one alpha for all images costs, by probe size."""


class Miss(Part):
    """A file of the teacher that was tried and could not be made, or was not equal."""

    path: Name
    """The name that it would have had."""
    format: Name
    """onnx, tflite, ..."""
    precision: Name
    """fp32, fp16 or int8."""
    reason: Name
    """Why."""
    differs: bool = False
    """Optional: it could be made, but was not equal to its model."""

    @property
    def verdict(self) -> str:
        """What a reader is told before the reason."""
        return "not equal to its model" if self.differs else "could not be made"


class Parity(Part):
    max_abs: NotNegative | None
    """Largest absolute difference of an embedding value; null where the artifact cannot run here."""
    cosine_min: Annotated[float, Field(ge=-1, le=1.000001)] | None
    """Smallest cosine between the artifact's and the model's embedding of one face."""
    passed: bool | None
    """The gate's verdict; null where it was not judged, and then `reason` says why."""
    reason: str | None
    """Why it failed, was not judged, or what decided."""
    faces: Count | None = None
    """Optional: real faces compared."""
    accuracy: Gate | None = None
    """Optional: accuracy beside its model's."""

    @model_validator(mode="after")
    def _explained(self) -> "Parity":
        if self.passed is not True and not self.reason:
            raise ValueError("a parity that did not pass needs a reason")
        return self


class Artifact(Part):
    path: Name
    """Relative to the run folder."""
    format: Name
    """onnx, tflite, tensorrt, ..."""
    precision: Name
    """fp32, fp16 or int8."""
    bytes: Count
    """File size."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the file."""
    parity: Parity
    """Agreement with the model it was exported from."""
    model: Literal["student", "teacher"] | None = None
    """Optional: whose file it is."""
    consumer: str | None = None
    """Optional: which runtimes an int8 ONNX file or an engine is for, cpu or tensorrt."""
    seconds: NotNegative | None = None
    """Optional: time to write it."""
    trtexec: str | None = None
    """Optional: the command that builds an engine from it on the user's own GPU."""
