"""The student that goes into app and page: a run's own, or the trained one of the package, exported here."""

import fcntl
from pathlib import Path

import export
from android_demo.pins import HERE
from export import sidecar
from faces.errors import UserError
from faces.files import fingerprint

PRECISIONS = ("fp32", "int8")
ZOO = "tiny16"


def artifact(folder: Path | None, precision: str) -> Path:
    """student.tflite or student-int8.tflite, with its sidecar beside it, of the run in `folder` or of the package."""
    name = "student.tflite" if precision == "fp32" else f"student-{precision}.tflite"
    if folder is None:
        # It takes seconds to import, and a run's student does not need it.
        from students.registry import zoo_file

        # Named by the weights and by the code: an export of the student that the package had before is not this one's.
        made = [zoo_file(ZOO), *sorted(Path(export.__file__).parent.rglob("*.py"))]
        file = HERE / "build" / "student" / fingerprint(ZOO, made) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / ".lock").open("w") as handle:
            # Another process may be exporting it: its files are this one's too.
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not (file.is_file() and sidecar.path_of(file).is_file()):
                export_zoo(file.parent)
    else:
        file = folder / name
        if not file.is_file():
            raise UserError(
                f"{folder} holds no {name}: python -m export {folder} --format tflite --precision {precision}"
            )
    parity = sidecar.read(file).parity
    if parity.passed is not True:
        raise UserError(
            f"{file} did not pass its parity gate ({parity.reason}), so neither app nor page takes it: "
            "give another --precision, or train and export the student again until it passes"
        )
    return file


def export_zoo(folder: Path) -> None:
    """Export the package's trained student as TFLite in fp32 and int8. It never saw the ORL people: 12 of them set
    int8's ranges, the others give parity and thresholds."""
    # These take seconds to import, and a run's student needs none of them.
    from export.crops import resize
    from export.parity import Trial
    from export.sidecar import Card, Data, Teacher
    from export.stage import How, Subject, export_model
    from faces import align, open_faces, verification
    from faces.dataset import split_identities
    from students.registry import load
    from students.student import count_macs, count_parameters

    model = load(ZOO, pretrained=True)
    faces = open_faces("orl")
    crops = resize(align.crop(faces.images, faces.landmarks, "arcface"), model.input_px)
    setting, judging = split_identities(faces, 0.7, 0)
    people = faces.identities[judging]
    pairs = verification.make_pairs(people, 0)
    trial = Trial(crops[judging], people, pairs, f"same@{model.input_px}", "orl, 28 people")
    card = Card(
        model=ZOO, template="arcface", metric="cosine",
        teacher=Teacher(name="dlib_resnet", bootstrap=False, licence="weights CC0-1.0 (public domain)"),
        data=Data(name="faces from public research collections", licence="research use only"),
        parameters=count_parameters(model), macs=count_macs(model, model.input_px),
    )  # fmt: skip
    ranges = f"{len(setting)} ORL faces of 12 other people"
    subject = Subject("student", model, card, trial, calibration=crops[setting], calibration_source=ranges)
    export_model(subject, folder, How(formats=("tflite",), precisions=PRECISIONS))
