"""Stage export: the student as files of other runtimes, and the teacher where asked, each proved on real faces."""

from functools import partial
from pathlib import Path
from typing import Any

from compress import teach
from compress.config import Config, Distill
from compress.data import TEST, TRAIN
from compress.distill import STUDENT
from compress.run import Run
from compress.tune import TUNED_FILE
from export import sidecar
from export.kit import Bench, Kit, write_kit
from export.stage import How, Row, Subject, export_model
from faces.files import printable, sha256


def settings(config: Config) -> Any:
    return [config.export, config.data.pairs]


def run(run: Run) -> dict[str, Any]:
    """Writes student.onnx and the like with their sidecars, with `teacher` also the teacher's, and export.json, from
    which `python -m export` makes more."""
    kit, how = _kit(run), run.config.export
    write_kit(run.folder, kit)
    bench = Bench(run.folder, kit)
    wanted = [
        ("student", partial(bench.student, mirror), how.formats, how.precisions)
        for mirror in ((False, True) if how.mirror else (False,))
    ]
    if how.teacher:
        wanted.append(("teacher", partial(bench.teacher, how.alpha), how.teacher_formats, how.teacher_precisions))
    rows, misses, alpha = list[Row](), list[Row](), None
    for model in ("student", "teacher"):
        _forget(run, model)
    for name, make, formats, precisions in wanted:
        with run.progress(f"export {name}", None):
            subject: Subject = make()
            found, missed = export_model(
                subject,
                run.folder,
                How(
                    formats=formats, precisions=precisions, allow_failure=how.allow_parity_failure,
                    report_misses=name == "teacher", progress=run.log.info,
                ),
            )  # fmt: skip
        rows += found
        misses += missed
        alpha = alpha or subject.card.alpha
    worst = min((row["parity"]["cosine_min"] for row in rows if row["parity"]["cosine_min"] is not None), default=1.0)
    sizes = ", ".join(f"{row['path']} {row['bytes'] / 1000:.0f} kB" for row in rows)
    return {
        "summary": f"{sizes}; least cosine to its model {worst:.7f}"
        + (f"; {len(misses)} files of the teacher missed" if misses else ""),
        "artifacts": [{key: value for key, value in row.items() if value is not None} for row in rows],
        "misses": misses,
        "alpha": None if alpha is None else alpha.model_dump(mode="json"),
    }


def runnable(rows: list[Row]) -> list[Row]:
    """The student's files that were run here: no engine that was built for another machine."""
    return [row for row in rows if row["model"] == "student" and row["parity"]["passed"] is not None]


def _kit(run: Run) -> Kit:
    teacher, data, student = (printable(run.facts(stage)) for stage in ("teacher", "data", "distill"))
    config = run.config
    fitted = teacher["bootstrap"] and config.teacher.weights is None
    return Kit(
        student=student["name"],
        student_file=STUDENT,
        student_sha256=sha256(run.path(STUDENT)),
        student_params=student["params"],
        student_macs=student["macs"],
        teacher=config.teacher.name,
        teacher_weights=teach.BOOTSTRAP if fitted else _absolute(config.teacher.weights),
        teacher_tuned=TUNED_FILE if teacher["method"] != "none" else None,
        teacher_params=teacher["params"],
        teacher_macs=teacher["macs"],
        teacher_card=sidecar.Teacher(
            name=teacher["name"], bootstrap=teacher["bootstrap"], licence=teacher["licence"] or "not stated"
        ),
        data=sidecar.Data(name=data["public"]["name"], licence=data["public"]["licence"] + _start(config)),
        student_origin=_origin(config.distill) if student["mode"] == "none" else None,
        train=TRAIN,
        train_faces=data["split"]["train_faces"],
        test=TEST,
        test_name=data["test_name"],
        pairs=_absolute(config.data.pairs),
        seed=config.seed,
        margin=config.distill.margin,
        degradation=config.distill.degradation,
    )


def _absolute(file: str | None) -> str | None:
    # As `python -m export RUN` may be called from anywhere; `hub` is no file.
    return str(Path(file).resolve()) if file is not None and Path(file).is_file() else file


def _origin(how: Distill) -> str:
    """Where it is told what weights learnt from that this run took as they are."""
    assert how.weights is not None
    return f"see students/zoo/{how.student}.md" if how.weights == "zoo" else f"not recorded ({Path(how.weights).name})"


def _start(config: Config) -> str:
    """The terms that a student's first weights bring along."""
    start = config.distill.weights
    return f"; on top the terms of the faces that its first weights ({Path(start).name}) saw" if start else ""


def _forget(run: Run, name: str) -> None:
    """Remove the files that were exported here before, of another model or by other settings."""
    for stale in run.folder.glob(f"{name}*.*.json"):
        file = stale.with_suffix("")
        if file.suffix in (".onnx", ".tflite", ".engine"):
            file.unlink(missing_ok=True)
            stale.unlink()
