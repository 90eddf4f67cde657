"""`results.json`, schema 1: what a run measured. Strict: an unknown key or a wrong type is an error.

Units: accuracies, intervals, rank-1, TAR and EER are percent (0 to 100); a ROC's rates and `share` are
fractions (0 to 1); `macs` counts a multiply and an add as one; times are seconds, latencies milliseconds.
The keys marked "optional" are extras of schema 1: a reader must do without them.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from compress.result_artifacts import Alpha, Artifact, Count, Fraction, Miss, Name, NotNegative, Part, Percent, Positive
from faces.errors import UserError

Ends = Annotated[list[Percent], Field(min_length=2, max_length=2)]

ROC_POINTS = 200
"""The protocol that a run is judged by."""


class Closeness(Part):
    least: Annotated[float, Field(ge=-1, le=1.000001)]
    """Smallest cosine over the faces."""
    mean: Annotated[float, Field(ge=-1, le=1.000001)]
    """Mean cosine."""


class FixedAlpha(Part):
    """What merging the adapters at one alpha costs against each image's own."""

    alpha: Fraction
    """The alpha: the mean over full-size test faces."""
    merge_max_abs: NotNegative
    """Largest difference of the merged from the unmerged network at that alpha: rounding alone."""
    by_px: dict[str, Closeness]
    """Cosines of the merged network's embeddings to those by each image's own alpha, by face width."""


class Finetuned(Part):
    steps: Count
    """Optimiser steps."""
    trained: Count
    """Parameters that changed: the adapters', or all."""
    alpha_percentiles: dict[str, list[Fraction]] | None = None
    """Optional: the 5%, 50% and 95% points of alpha over training faces, `full` size and at `16` px."""
    fixed_alpha: FixedAlpha | None = None
    """Optional: where images have an alpha of their own."""


class Teacher(Part):
    name: Name
    """As given to `--teacher`."""
    source: Name
    """Where the weights come from: a file, a package, or what a bootstrap was fitted to."""
    bootstrap: bool
    """True where no face-recognition weights were given and the projection was fitted in closed form."""
    method: Name
    """`--teacher-method`: none, full, lora, petalface, octuplet or qgface."""
    params: Count
    """Parameters of the embedding network."""
    finetuned: Finetuned | None = None
    """Optional: how it was adapted to low resolution, where it was."""
    macs: Count | None = None
    """Optional: multiply-accumulates a face."""
    input_px: Count | None = None
    """Optional: side of the square input."""
    embedding_dim: Count | None = None
    """Optional: width of the embedding."""
    licence: str | None = None
    """Optional: licence of the weights."""


class Student(Part):
    name: Name
    """As given to `--student`."""
    params: Count
    """Parameters up to the mimic layer: what is deployed."""
    macs: Count
    """Multiply-accumulates a face."""
    mode: Literal["c", "s", "dc", "sc", "none"]
    """What it learnt from: labels, adapted targets, labels and teacher features, labels and targets; none: its weights
    were given, and are as they were."""
    loss: Name
    """Distillation loss: regression or relational."""
    input_px: Count | None = None
    """Optional: side of the square input."""
    embedding_dim: Count | None = None
    """Optional: width of the embedding."""


class Roc(Part):
    fmr: list[Fraction]
    """False match rates, ascending, at most 200 points."""
    tmr: list[Fraction]
    """True match rate at each, never falling."""

    @model_validator(mode="after")
    def _curve(self) -> "Roc":
        if len(self.fmr) != len(self.tmr):
            raise ValueError(f"fmr has {len(self.fmr)} points, tmr {len(self.tmr)}")
        if len(self.fmr) > ROC_POINTS:
            raise ValueError(f"a ROC has at most {ROC_POINTS} points, this one {len(self.fmr)}")
        if self.fmr != sorted(self.fmr) or self.tmr != sorted(self.tmr):
            raise ValueError("the points of a ROC must rise in fmr and tmr")
        return self


class Accuracy(Part):
    model: Name
    """`teacher`, `student` or the path of an artifact."""
    data: Name
    """Data set."""
    split: Name
    """Which part of it, e.g. `test`."""
    protocol: Annotated[str, Field(pattern=r"^(full|(same|cross)@[1-9][0-9]*)$")]
    """`full`; `same@P`: both images at P px; `cross@P`: the first full size, the second at P px."""
    accuracy: Percent
    """Verification accuracy, mean of the folds."""
    ci95: Ends
    """95% interval of `accuracy`: low, high; contains it."""
    pairs: Count
    """Genuine and impostor pairs together."""
    folds: Count
    """Folds whose threshold was chosen on the others."""
    rank1: Percent | None
    """Closed-set rank-1 identification; null where it was not measured."""
    rank1_ci95: Ends | None = None
    """Optional: of `rank1`, the people of the probes drawn, the gallery held."""
    tar_at_far: dict[str, Percent | None]
    """TAR by FAR, the key a number such as `1e-2`; null where the impostor pairs are too few for it."""
    tar_ci95: dict[str, Ends | None] = Field(default_factory=dict)
    """Optional: of `tar_at_far`, people drawn, a threshold for each draw; null where that is, and from few people."""
    eer: Percent | None = None
    """Optional: equal error rate."""
    eer_ci95: Ends | None = None
    """Optional: of `eer`, people drawn."""
    roc: Roc | None = None
    """Optional: the ROC curve."""
    std_folds: NotNegative | None = None
    """Optional: standard deviation over the folds, percentage points."""

    @field_validator("tar_at_far")
    @classmethod
    def _rates(cls, rates: dict[str, float | None]) -> dict[str, float | None]:
        for key in rates:
            if not re.fullmatch(r"[0-9.]+(e-?[0-9]+)?", key) or not 0 < float(key) <= 1:
                raise ValueError(f"{key!r} is no false accept rate in (0, 1]")
        return rates

    @model_validator(mode="after")
    def _contains(self) -> "Accuracy":
        figures = [("ci95", self.accuracy, self.ci95), ("rank1_ci95", self.rank1, self.rank1_ci95),
                   ("eer_ci95", self.eer, self.eer_ci95)]  # fmt: skip
        figures += [(f"tar_ci95 at {far}", self.tar_at_far.get(far), ends) for far, ends in self.tar_ci95.items()]
        for name, figure, ends in figures:
            if ends is not None and (figure is None or not ends[0] <= figure <= ends[1]):
                raise ValueError(f"{name} {ends} does not contain {figure}")
        return self

    @property
    def kind(self) -> str:
        """`full`, `same` or `cross`."""
        return self.protocol.partition("@")[0]

    @property
    def px(self) -> int | None:
        """The protocol's resolution, None for `full`."""
        return int(self.protocol.partition("@")[2] or 0) or None


class Reference(Accuracy):
    source: Name
    """Which run or file the row was taken from."""


class Throughput(Part):
    artifact: Name
    """Path of the artifact, or `teacher`."""
    runtime: Name
    """What ran it, e.g. onnxruntime."""
    device: Name
    """cpu, cuda, ..."""
    threads: Annotated[int, Field(ge=1)]
    """Threads allowed."""
    batch: Annotated[int, Field(ge=1)]
    """Faces a call."""
    precision: Name
    """fp32, fp16 or int8."""
    input_px: Annotated[int, Field(ge=1)]
    """Side of the square input."""
    preprocessing: bool | str
    """Whether pre-processing is inside the time, or which."""
    faces_per_second: Positive
    """Median of the repeats."""
    iqr: NotNegative | Annotated[list[NotNegative], Field(min_length=2, max_length=2)] | None
    """Spread of faces_per_second over the repeats: the interquartile range or both quartiles."""
    p50_ms: Positive | None
    """Median latency of one call."""
    p99_ms: Positive | None
    """99th percentile of it."""
    peak_gops: Positive | None
    """The machine's measured peak on the same threads, 10^9 operations/s (two a multiply-accumulate)."""
    share: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    """Part of that peak reached; above 1 only where the peak is another precision's."""


class Run(Part):
    """Optional block: how the run was made. Every key may be left out."""

    command: str | None = None
    """The command line."""
    started: str | None = None
    """ISO 8601."""
    cpu: str | None = None
    """The host's CPU model."""
    cores: Count | None = None
    """Cores that the run could use."""
    seeds: dict[str, int] = Field(default_factory=dict)
    """Seed by what it seeds."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Version by package: python, torch, onnx, onnxruntime, ai-edge-litert, bridgeface."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The run's whole configuration."""
    git: str | None = None
    """Revision of the checkout."""
    warnings: list[str] = Field(default_factory=list)
    """What a reader must know, one sentence each."""


class PublicData(Part):
    name: Name
    """The data, as opened."""
    faces: Count
    """Faces kept."""
    identities: Count
    """People among them."""
    unlabelled: Count = 0
    """Faces without an identity."""
    licence: str | None = None
    """Optional: licence or terms of the data."""


class Split(Part):
    train_faces: Count
    """Faces of the training people."""
    train_identities: Count
    """Training people."""
    virtual_faces: Count = 0
    """Optional: averages of two training faces that were added to them."""
    test_faces: Count
    """Faces of the unseen people."""
    test_identities: Count
    """Unseen people."""
    leaks: Count = 0
    """Optional: people or pictures shared by both sides, which `data.allow_leaks` accepted."""


class Data(Part):
    """Optional block: what the run learnt from and was tested on. Every key may be left out."""

    public: PublicData | None = None
    """The public set."""
    split: Split | None = None
    """Its identity-disjoint split."""
    skipped: dict[str, Count] = Field(default_factory=dict)
    """Files left out, counted by reason."""
    landmark_misses: list[str] = Field(default_factory=list)
    """Keys of the faces in which no landmarks were found."""


class Results(Part):
    schema_version: Literal[1] = Field(alias="schema")
    """The version of this form."""
    teacher: Teacher
    student: Student
    accuracy: list[Accuracy]
    artifacts: list[Artifact]
    throughput: list[Throughput]
    seconds: dict[str, NotNegative]
    """Wall time by stage."""
    run: Run | None = None
    data: Data | None = None
    misses: list[Miss] | None = None
    """Optional: files of the teacher that could not be made or were not equal."""
    alpha: Alpha | None = None
    """Optional: how the exported teacher mixes its twin adapters."""
    reference: list[Reference] | None = None
    """Optional: accuracy of another run or teacher, to hold this one against."""

    @property
    def headline(self) -> str:
        """The protocol that a page opens with: both faces at the student's input size."""
        return f"same@{self.student.input_px or 16}"


def validate(value: Any) -> Results:
    """The typed form of what `json.load` gives; raises ValueError (pydantic's, or for NaN) if it is not."""
    return Results.model_validate_json(json.dumps(value, allow_nan=False))


def load(path: str | Path) -> Results:
    """Read and check a results.json; UserError names the file and every field that is wrong."""
    path = Path(path)
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, entry['loc'])) or 'file'}: {entry['msg']}" for entry in error.errors()[:5]
        )
        raise UserError(f"{path} is no results.json of schema 1: {wrong}") from None
