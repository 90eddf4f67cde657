"""Stage export: the student as ONNX and TFLite files, each proved equal to it on real faces."""

from typing import Any

import numpy as np

from compress.config import Config
from compress.data import load_parts
from compress.distill import load_student
from compress.run import Run
from export import sidecar
from export.sidecar import Card
from export.stage import FORMATS, export_model, reference_embeddings
from faces.align import crop
from faces.dataset import Faces
from faces.degrade import reduce
from faces.verification import Roc

PARITY_FACES = 1024


def settings(config: Config) -> Any:
    return config.export


def run(run: Run) -> dict[str, Any]:
    """Writes student.onnx, student.tflite and their sidecars."""
    train, test = load_parts(run)
    student = load_student(run)
    px = student.input_px
    seen = student_crops(test, None, px)
    embeddings = reference_embeddings(student, seen)
    roc = Roc.of(embeddings, embeddings, test.identities, "cosine")
    teacher, data, facts = run.facts("teacher"), run.facts("data"), run.facts("distill")
    card = Card(
        model=facts["name"],
        template="arcface",
        metric="cosine",
        teacher=sidecar.Teacher(
            name=teacher["name"], bootstrap=teacher["bootstrap"], licence=teacher["licence"] or "not stated"
        ),
        data=sidecar.Data(name=data["public"]["name"], licence=data["public"]["licence"]),
        thresholds=sidecar.thresholds(roc, f"same@{px}", f"{data['test_name']}, test"),
        parameters=facts["params"],
        macs=facts["macs"],
    )
    # People of the test side first; a small one is filled up from the training side (parity asks for no accuracy).
    images = np.concatenate([seen, student_crops(train.subset(np.arange(min(len(train), 256))), None, px)])
    how = run.config.export
    for format in set(FORMATS) - set(how.formats):
        # Of another student: exported before, and not asked for now.
        stale = run.path(f"student.{format}")
        stale.unlink(missing_ok=True)
        sidecar.path_of(stale).unlink(missing_ok=True)
    with run.progress("export", None):
        rows = export_model(
            student, "student", run.folder, how.formats, images[:PARITY_FACES], card,
            allow_failure=how.allow_parity_failure,
        )  # fmt: skip
    worst = min(row["parity"]["cosine_min"] for row in rows)
    sizes = ", ".join(f"{row['format']} {row['bytes'] / 1000:.0f} kB" for row in rows)
    return {"summary": f"{sizes}; least cosine to the student {worst:.7f}", "artifacts": rows}


def student_crops(faces: Faces, px: int | None, input_px: int) -> np.ndarray:
    """What a student of `input_px` sees of `faces` at `px` pixels (None = full size): (N, input, input, 3) uint8."""
    return reduce(crop(faces.images, faces.landmarks, "arcface"), px, input_px)
