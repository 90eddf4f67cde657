"""Files of a student that are made on the spot to be timed: speed does not depend on the weights."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np


@contextmanager
def artifacts_of(student: str, precisions: Sequence[str] = ("fp32",)) -> Iterator[list[Path]]:
    """Files of a student with random weights, those for TensorRT left out, in a folder that goes away."""
    # Here, as timing files that exist needs no torch.
    import torch

    from export.parity import Trial
    from export.sidecar import Card
    from export.stage import How, Subject, export_model
    from export.targets import TENSORRT
    from students import create_student
    from students.student import count_macs, count_parameters

    torch.manual_seed(0)
    model = create_student(student)
    click.echo(f"exporting {student} with random weights", err=True)
    px = model.input_px
    noise = np.random.default_rng(0).integers(0, 256, (256, px, px, 3), dtype=np.uint8)
    card = Card(
        model=student,
        template="arcface",
        metric="cosine",
        teacher=None,
        data=None,
        parameters=count_parameters(model),
        macs=count_macs(model, px),
    )
    nobody = Trial(noise, np.full(len(noise), -1), None, f"same@{px}", "noise")
    subject = Subject(student, model, card, nobody, calibration=noise, calibration_source="noise")
    with tempfile.TemporaryDirectory(prefix="bridgeface-") as folder:
        # Random weights may round badly: their int8 files are for the clock alone and go away with the folder.
        rows, _ = export_model(subject, folder, How(precisions=precisions, allow_failure=True))
        yield [Path(folder) / row["path"] for row in rows if row["consumer"] != TENSORRT]
