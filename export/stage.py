"""From a model to proved files: export, run in the real runtime, compare, and only then name the file."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from export import parity
from export import sidecar as sidecars
from export.crops import RESAMPLING
from export.engines import cannot_run
from export.onnx import OPSET, export_onnx
from export.parity import Trial
from export.quantize import quantize_onnx
from export.runtimes import Artifact
from export.sidecar import Calibration, Card, Crop, Engine, Input, Parity, Sidecar
from export.targets import CPU, ENGINES, TENSORRT, Rounding, Target, targets
from export.tensorrt import CAPABILITIES, build_engine, trtexec_line
from export.tflite import Quantisation, export_tflite
from export.tracing import ALPHA_NAME, INPUT_NAME, OUTPUT_NAME, at_rest
from faces.align import STORED_POINTS, TEMPLATES
from faces.dataset import CROP_PX
from faces.errors import UserError
from faces.files import sha256
from faces.verification import Roc, all_pairs

TOOLS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tflite": ("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
    "tensorrt": (),
    "tensorrt-rtx": (),
}
Row = dict[str, Any]


class Differs(UserError):
    """A file that was made, but misses its tolerance."""


@dataclass(frozen=True)
class Subject:
    """A model to export, and what proves it.

    model: float RGB in [0, 1] (N, 3, p, p) to (N, D); with `alpha`, its images' own alphas (N,) of the trial, the
    alpha becomes an input of the graph. reference: the embeddings (N, D) of the trial's faces by the model that the
    files must equal, or None: `model` itself. calibration: (M, p, p, 3) uint8 faces that set the ranges of int8, and
    calibration_source what they are. aware: gives the model fine-tuned with a file's rounding in the loop, asked only
    where int8 misses its gate without it. suffix: tells the files of two models of one name apart.
    """

    name: str
    model: nn.Module
    card: Card
    trial: Trial
    alpha: np.ndarray | None = None
    reference: np.ndarray | None = None
    calibration: np.ndarray | None = None
    calibration_source: str = ""
    aware: Callable[[Rounding, Callable[[int, int], None]], nn.Module] | None = None
    suffix: str = ""

    @property
    def stem(self) -> str:
        """What the files' names begin with."""
        return self.name + self.suffix


@dataclass(frozen=True)
class How:
    """formats and precisions: see `export.targets`; allow_failure: keep files that miss their tolerance; report_misses:
    a file that cannot be made or is not equal is a row, not an error; uint8_input, normalise: ONNX takes the
    camera's bytes (N, p, p, 3), embeddings leave with length 1; batch: least, usual and largest of an engine;
    capabilities: of the GPUs that TensorRT-RTX builds for; progress: hears of what begins, tick of each step in it."""

    formats: Sequence[str] = ("onnx", "tflite")
    precisions: Sequence[str] = ("fp32",)
    allow_failure: bool = False
    report_misses: bool = False
    uint8_input: bool = False
    normalise: bool = False
    batch: tuple[int, int, int] = (1, 32, 256)
    capabilities: Sequence[str] = CAPABILITIES
    progress: Callable[[str], None] = field(default=lambda what: None)
    tick: Callable[[str], None] = field(default=lambda what: None)


@torch.no_grad()
def reference_embeddings(model: nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """The model's own embeddings (N, D) float32 of uint8 crops (N, p, p, 3), in eval mode on the CPU."""
    with at_rest(model) as resting:
        parts = [
            resting(torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255)
            for start in range(0, len(images), batch)
        ]
    return torch.cat(parts).float().numpy()


def export_model(subject: Subject, folder: str | Path, how: How) -> tuple[list[Row], list[Row]]:
    """Write `folder/NAME...` and its sidecar for each target; rows as `artifacts` of results.json, and the misses.

    An artifact that misses its tolerance raises UserError with the figures and leaves neither file nor sidecar under
    its name, nor those of an earlier export, which stay where nothing could be made; `how.allow_failure` keeps it all
    the same, `passed` false, and the sidecar records both; with `how.report_misses` it becomes a row {path, format,
    precision, reason, differs} of the misses, as does one that cannot be made. UserError on an unknown format or
    precision, before any work.
    """
    wanted = targets(how.formats, how.precisions)
    folder = Path(folder)
    unproved = folder / ".unproved"
    # What a killed run left there was never proved.
    shutil.rmtree(unproved, ignore_errors=True)
    unproved.mkdir(parents=True)
    try:
        work = _Export(subject, folder, unproved, how)
        for target in wanted:
            how.progress(target.file(subject.stem))
            work.make(target)
        return work.rows, work.misses
    finally:
        shutil.rmtree(unproved)


class _Export:
    """The state of one model's export."""

    def __init__(self, subject: Subject, folder: Path, unproved: Path, how: How) -> None:
        self.subject, self.folder, self.unproved, self.how = subject, folder, unproved, how
        given = subject.reference
        self.reference = reference_embeddings(subject.model, subject.trial.images) if given is None else given
        self.rows: list[Row] = []
        self.misses: list[Row] = []

    def make(self, target: Target) -> None:
        """Write, prove and name one file."""
        final = self.folder / target.file(self.subject.stem)
        try:
            candidate, sidecar, seconds = self._proved(target, final)
        except UserError as problem:
            if isinstance(problem, Differs):
                # What an earlier export left there is another model's.
                for stale in (final, sidecars.path_of(final)):
                    stale.unlink(missing_ok=True)
            if not self.how.report_misses:
                raise
            one = {"path": final.name, "format": target.format, "precision": target.precision}
            self.misses.append({**one, "reason": str(problem), "differs": isinstance(problem, Differs)})
            return
        final.unlink(missing_ok=True)
        # The sidecar first: an artifact under its final name always has one.
        sidecars.write(final, sidecar)
        candidate.replace(final)
        self.rows.append(
            {
                "model": self.subject.name,
                "path": final.name,
                "format": target.format,
                "precision": target.precision,
                "bytes": sidecar.bytes,
                "sha256": sidecar.sha256,
                "parity": sidecar.parity.model_dump(mode="json"),
                "consumer": target.consumer,
                "seconds": round(seconds, 1),
                "trtexec": self._trtexec(final.name, target),
            }
        )

    def _proved(self, target: Target, final: Path) -> tuple[Path, Sidecar, float]:
        """The first attempt that passes, or else the one that is closest to its model."""
        candidate, best = self.unproved / final.name, self.unproved / f"best-{final.name}"
        seconds, least, proved = 0.0, math.inf, None
        for trained, unsigned in self._attempts(target):
            began = time.monotonic()
            model = self.subject.model
            if trained:
                model = self._trained(target.rounding(unsigned), final.name)
            pending = self._written(target, candidate, model, trained, unsigned)
            seconds += time.monotonic() - began
            if pending.engine is not None and (why := cannot_run(pending.engine)):
                return candidate, self._not_run(pending, target, why), seconds
            verdict, thresholds = self._compared(candidate, pending, target)
            excess = parity.excess(verdict, target.precision)
            if proved is None or verdict.passed or excess < least:
                least = excess
                proved = pending.model_copy(update={"parity": verdict, "thresholds": thresholds})
                candidate.replace(best)
            if verdict.passed:
                break
        assert proved is not None
        allowed = self.how.allow_failure
        if not proved.parity.passed and not allowed:
            raise Differs(f"{final.name} differs from its model: {proved.parity.reason}; it was not kept")
        return best, proved.model_copy(update={"parity_failure_allowed": allowed}), seconds

    def _trained(self, rounding: Rounding, name: str) -> nn.Module:
        assert self.subject.aware is not None
        what = f"{name}: quantisation-aware fine-tuning"
        self.how.progress(what)
        return self.subject.aware(rounding, lambda done, of: self.how.tick(f"{what}, {done} of {of} steps"))

    def _attempts(self, target: Target) -> list[tuple[bool, bool]]:
        """(trained with the rounding in the loop, unsigned weights), in turn until one passes.

        For a CPU first seven bits a weight, which are the fastest, also trained; eight without sign saturate nowhere
        either, and are finer.
        """
        # An engine is built from the one ONNX file that was proved: another attempt would change nothing.
        if target.precision != "int8" or target.source is not None:
            return [(False, False)]
        unsigned = [False, True] if target.consumer == CPU else [False]
        trained = [False, True] if self.subject.aware is not None else [False]
        return [(one, other) for other in unsigned for one in trained]

    def _written(
        self, target: Target, candidate: Path, model: nn.Module, trained: bool, unsigned: bool = False
    ) -> Sidecar:
        """Write the file; its contract, not yet compared."""
        px = self.subject.trial.images.shape[1]
        quantised, engine = None, None
        if target.source is not None:
            engine = self._built(target, candidate)
        elif target.format == "tflite":
            if self.subject.alpha is not None:
                raise UserError(
                    f"{candidate.name} cannot take an alpha with each face, only ONNX files and engines do: give "
                    "gallery, probe, mean or a number for --alpha"
                )
            quantised = export_tflite(model, candidate, px, target.precision, self._calibration(target))
        elif target.precision == "int8":
            floats = self.unproved / f"{'aware' if trained else 'fp32'}-for-int8.onnx"
            # Each rounding has a training of its own, the model as it is one file for all.
            if trained or not floats.is_file():
                self._onnx(model, floats, "fp32")
            crops = self._calibration(target)
            assert crops is not None
            quantize_onnx(floats, candidate, crops, target.consumer, unsigned)  # type: ignore[arg-type]
        else:
            self._onnx(model, candidate, target.precision)
        return self._contract(target, candidate, quantised, engine, trained)

    def _onnx(self, model: nn.Module, path: Path, precision: str) -> None:
        export_onnx(
            model,
            path,
            self.subject.trial.images.shape[1],
            precision=precision,
            alpha_input=self.subject.alpha is not None,
            uint8_input=self.how.uint8_input,
            normalise=self.how.normalise,
        )

    def _built(self, target: Target, candidate: Path) -> Engine:
        assert target.source is not None
        name = target.source.file(self.subject.stem)
        source = self.folder / name
        # Not what an earlier export left there.
        if name not in {row["path"] for row in self.rows}:
            raise UserError(f"{candidate.name} is built from {name}, which could not be made")
        backend = ENGINES[target.format]
        return build_engine(source, candidate, backend, self.how.batch, self.how.capabilities)  # type: ignore[arg-type]

    def _calibration(self, target: Target) -> np.ndarray | None:
        if target.precision != "int8":
            return None
        if self.subject.calibration is None:
            raise UserError(f"{self.subject.name}: int8 needs calibration faces, and none were given")
        return self.subject.calibration

    def _compared(self, candidate: Path, pending: Sidecar, target: Target) -> tuple[Parity, dict]:
        trial, reference = self.subject.trial, self.reference
        if pending.normalised:
            reference = reference / np.linalg.norm(reference, axis=1, keepdims=True)
        found = parity.run(Artifact(candidate, pending), trial.images, self.subject.alpha)
        metric = self.subject.card.metric
        verdict = parity.judge(found, reference, target.precision, metric)
        known = trial.identities >= 0
        if verdict.cosine_min is None or not known.any():
            return verdict, {}
        # fp32 differs from the model by rounding alone; the others have scores, and so thresholds, of their own.
        scored = (reference if target.precision == "fp32" and verdict.passed else found)[known]
        roc = Roc.of(all_pairs(scored, scored, trial.identities[known], metric))
        thresholds = sidecars.thresholds(roc, trial.protocol, trial.data)
        return parity.with_accuracy(verdict, found, reference, trial, metric, target.precision), thresholds

    def _not_run(self, pending: Sidecar, target: Target, why: str) -> Sidecar:
        """An engine where no GPU of its own is: held to the ONNX file that it was built from."""
        assert target.source is not None
        source = sidecars.read(self.folder / target.source.file(self.subject.stem))
        reason = f"not run: {why}; built from {source.file} ({source.parity.reason})"
        held = Parity(max_abs=None, cosine_min=None, faces=0, passed=None, reason=reason)
        told = {"thresholds": source.thresholds, "parity_failure_allowed": self.how.allow_failure}
        return pending.model_copy(update={"parity": held, **told})

    def _trtexec(self, file: str, target: Target) -> str | None:
        """The command that builds this ONNX file on the user's own Jetson or GPU."""
        if target.format != "onnx" or target.consumer == CPU:
            return None
        px = self.subject.trial.images.shape[1]
        shape = (None, px, px, 3) if self.how.uint8_input else (None, 3, px, px)
        shapes = {INPUT_NAME: shape, **({ALPHA_NAME: (None,)} if self.subject.alpha is not None else {})}
        return trtexec_line(file, shapes, self.how.batch, target.precision)

    def _contract(
        self, target: Target, file: Path, quantised: Quantisation | None, engine: Engine | None, trained: bool
    ) -> Sidecar:
        card, subject = self.subject.card, self.subject
        px = subject.trial.images.shape[1]
        base, points = TEMPLATES[card.template]
        channels_last = target.format == "tflite" or self.how.uint8_input
        fed: dict[str, Any] = {}
        if quantised is not None:
            fed = {"dtype": quantised.dtype, "scale": quantised.scale, "zero_point": quantised.zero_point}
        elif self.how.uint8_input and target.format != "tflite":
            fed = {"dtype": "uint8", "scale": 1 / 255, "zero_point": 0}
        calibration = None
        if target.source is not None:
            calibration = sidecars.read(self.folder / target.source.file(subject.stem)).calibration
        elif target.precision == "int8":
            assert subject.calibration is not None
            calibration = Calibration(
                faces=len(subject.calibration), source=subject.calibration_source, trained=trained
            )
        read = onnx.load(str(file), load_external_data=False) if target.format == "onnx" else None
        return Sidecar(
            file=file.name,
            bytes=file.stat().st_size,
            sha256=sha256(file),
            format=target.format,  # type: ignore[arg-type]
            precision=target.precision,  # type: ignore[arg-type]
            consumer=target.consumer or (TENSORRT if target.source is not None else None),
            opset=OPSET if read is not None else None,
            ir_version=read.ir_version if read is not None else None,
            model=card.model,
            parameters=card.parameters,
            macs=card.macs,
            input=Input(
                name=INPUT_NAME,
                shape=(None, px, px, 3) if channels_last else (None, 3, px, px),
                layout="NHWC" if channels_last else "NCHW",
                **fed,
            ),
            crop=Crop(
                template=card.template,
                template_px=base,
                resampling=RESAMPLING,
                # Pixel centres lie at whole numbers, as in `faces.align`.
                points=tuple((round(x, 4), round(y, 4)) for x, y in ((points + 0.5) * px / base - 0.5).tolist()),
                stored_px=CROP_PX,
                stored_points=tuple((round(x, 4), round(y, 4)) for x, y in STORED_POINTS.tolist()),
            ),
            output=OUTPUT_NAME,
            normalised=self.how.normalise and target.format != "tflite",
            embedding_dim=self.reference.shape[1],
            metric=card.metric,
            thresholds={},
            parity=Parity(max_abs=None, cosine_min=None, faces=0, passed=None, reason="not yet compared"),
            parity_failure_allowed=False,
            alpha=_alpha(card, subject),
            calibration=calibration,
            engine=engine,
            teacher=card.teacher,
            data=card.data,
            versions={tool: metadata.version(tool) for tool in ("bridgeface", "torch", "numpy", *TOOLS[target.format])},
        )


def _alpha(card: Card, subject: Subject) -> sidecars.Alpha | None:
    if card.alpha is None or subject.alpha is None:
        return card.alpha
    return card.alpha.model_copy(update={"input": ALPHA_NAME})
