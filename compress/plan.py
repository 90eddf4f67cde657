"""Before a run: are the names and paths right, which stages would run, how long and how large."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from compress.adapt import fit_adapter
from compress.config import Config
from compress.data import virtual_count
from compress.distill import start_student, weights_file
from compress.run import Run, Stage
from compress.teach import REFERENCE
from compress.tune import check_trainable
from faces.dataset import CROP_PX
from faces.errors import UserError
from faces.sources import recognise
from faces.sources.reader import spec_path
from faces.threads import cores, threads
from students.batches import Examples, crop_side
from students.optimise import create_optimiser
from students.registry import create_student
from students.student import EMBEDDING_DIM
from students.train import check_sizes, train_student
from teachers.backbones.bootstrap import fast_bfloat16
from teachers.bootstrap import view_count
from teachers.ensemble import Ensemble
from teachers.evaluate import CROSS_PX
from teachers.names import members
from teachers.registry import create_teacher, is_stand_in, weight_files
from teachers.teacher import Teacher

_STEPS = 8
# The wall time of the stages that do not grow with the data: export of two files, their timing, the report.
_FIXED = {"export": 30.0, "benchmark": 15.0, "report": 10.0}


def choose(stages: Sequence[Stage], names: str | None) -> list[Stage]:
    """The stages named in a comma-separated list, in their own order; all where it is None."""
    if names is None:
        return list(stages)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [stage.name for stage in stages]
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"unknown stage {unknown[0]!r}. Known: {', '.join(known)}")
    if not wanted:
        raise UserError(f"--stages names no stage. Known: {', '.join(known)}")
    return [stage for stage in stages if stage.name in wanted]


def check_fresh(stages: Sequence[Stage]) -> None:
    """UserError where a stage needs what --fresh would forget and no stage makes again."""
    if lost := [before.name for stage in stages for before in stage.after if before not in stages]:
        raise UserError(
            f"--fresh forgets what every stage left, {lost[0]} too, which --stages leaves out: name it too, or leave "
            "out --fresh"
        )


def check(config: Config, folder: Path) -> None:
    """UserError for what can be known to be wrong before any work is done in the run's folder."""
    for spec in (*config.data.public, *filter(None, [config.data.val])):
        source = spec_path(spec).resolve()
        if spec != "orl" and source.is_dir() and folder.resolve().is_relative_to(source):
            # Its own files would be records left out, and a change of the data whenever one is written.
            raise UserError(f"--out {folder} lies in the faces' folder {spec}: choose one outside it")
    how, world = config.distill, int(os.environ.get("WORLD_SIZE", 1))
    if not how.trains and how.weights is None:
        raise UserError("distill.samples=0 trains nothing: give trained weights, --student-weights FILE or zoo")
    if how.versions and how.sizes:
        raise UserError("a fixed set of versions has one size: set distill.versions=0 or leave out distill.sizes")
    if how.batch % world:
        raise UserError(f"a batch of {how.batch} faces cannot be shared by {world} processes: set distill.batch")
    if config.export.teacher and len(members(config.teacher.name, config.teacher.weights)) > 1:
        raise UserError(f"{config.teacher.name} is an ensemble: export its members, each from a run of its own")
    weights = weight_files(config.teacher.name, config.teacher.weights)
    check_sizes(create_student(how.student), how)
    for spec in (*config.data.public, *filter(None, [config.data.val])):
        # The first record only: an empty folder has none, and its reader says so.
        next(recognise(spec)[0](), None)
    for file in (config.data.pairs, weights_file(config.distill)):
        if file is not None and not Path(file).is_file():
            raise UserError(f"no file {file}")
    # Its optimiser may need a package.
    create_optimiser(start_student(config.distill, config.seed), torch.nn.ModuleList(), config.distill)
    for path in weights:
        if not path.is_file():
            raise UserError(f"no weights file {path}; give an existing file, or `hub` to download")
    if config.teacher.weights is not None or not is_stand_in(config.teacher.name):
        teacher = create_teacher(config.teacher.name, config.teacher.weights)
        if config.teacher.finetune.method != "none":
            check_trainable(teacher)
    try:
        # .item() fails where a device has no memory ("meta").
        torch.zeros(1, device=config.device).item()
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UserError(
            f"device {config.device!r} cannot be used here ({reason}); leave --device out for the CPU"
        ) from None
    method = config.teacher.finetune.method
    if world > 1 and method != "none":
        raise UserError(
            f"under torchrun the pipeline shares embedding and distillation, not fine-tuning ({method}): first "
            "torchrun -m teachers.finetune, then this with --teacher-method none and the teacher.safetensors that "
            "it wrote as --teacher-weights"
        )


def notes(config: Config) -> list[str]:
    """What whoever starts the run must know before anything else."""
    name, found = config.teacher.name, []
    taught = ", and the student's," if config.distill.trains else ""
    if is_stand_in(name, config.teacher.weights):
        found.append(
            f"no trained weights were given for {name} (--teacher-weights FILE or hub): a BOOTSTRAP stands in, random "
            f"weights fitted to {REFERENCE}. Its figures{taught} say nothing about a trained {name}."
        )
    wanted = {"precision": config.distill.precision == "bf16", "optimiser": config.distill.optimiser == "muon"}
    if config.device == "cpu" and any(wanted.values()) and not fast_bfloat16():
        chosen = " and ".join(f"distill.{key}={getattr(config.distill, key)}" for key, on in wanted.items() if on)
        found.append(
            f"{chosen} computes in bfloat16, for which this CPU has no instructions and is many times slower than in "
            "fp32: --dry-run says what that costs"
        )
    if not config.distill.trains and "int8" in config.export.precisions and config.data.public == ("orl",):
        found.append(
            "the int8 files' ranges and fine-tuning will be of ORL's few grey faces, and what passes there may miss on "
            "your cameras' faces: give some of those, --data"
        )
    return [f"note       {one}" for one in found]


def show(stages: Sequence[Stage], folder: Path, config: Config) -> None:
    """Print a table of stages: done or not, expected time, disk and memory, measured on a few steps here."""
    console = Console()
    for line in notes(config):
        console.print(line, soft_wrap=True)
    names = [record.identity for spec in config.data.public for record in recognise(spec)[0]()]
    count, people = len(names), len({*names} - {None})
    console.print(f"{count} records of public faces in {', '.join(config.data.public)}; timing a few steps ...")
    with threads(1):
        seconds = {**_FIXED, **_measured(config, count, people)}
    run = Run(folder, config, quiet=True)
    console.print(f"run folder {folder}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("stage", "state", "expected"):
        table.add_column(heading)
    for stage in stages:
        todo = ("to do", f"{seconds[stage.name]:,.0f} s")
        table.add_row(stage.name, *(("done", "-") if run.is_done(stage) else todo))
    console.print(table)
    disk, memory = _room(config, count)
    console.print(f"about {disk / 1e9:.1f} GB of disk in the run folder, {memory / 1e9:.1f} GB of memory")


def _room(config: Config, count: int) -> tuple[float, float]:
    """Bytes of disk in the run folder, and of memory."""
    how = config.distill
    px = create_student(how.student).input_px
    kept = count + virtual_count(config)
    images = kept * CROP_PX**2 * 3
    crops = kept * crop_side(max((px, *how.sizes)), how.margin) ** 2 * 3
    disk = images + crops + kept * 4 * (EMBEDDING_DIM + 512) + 50e6
    memory = 2 * images + crops + kept * (how.versions * 3 * px**2 + 4 * EMBEDDING_DIM) + 1.5e9
    return disk, memory


def _measured(config: Config, count: int, people: int) -> dict[str, float]:
    """Seconds of the stages that grow with the data, by arithmetic from a few timed steps on this machine."""
    teacher = create_teacher(config.teacher.name, config.teacher.weights).to(config.device)
    a_face = _seconds_a_face(teacher)
    how = config.distill
    tested, more = round(count * config.data.test_share), 0
    if config.data.val is not None:
        tested = more = sum(1 for _ in recognise(config.data.val)[0]())
    embedded = (count + virtual_count(config)) * (2 if config.teacher.mirror else 1) if how.trains else 0
    seconds = (embedded + _tuning_faces(config, tested)) * a_face
    if teacher.bootstrap:
        views = view_count(count + more - tested, config.teacher.views)
        seconds += views * a_face + (embedded + views) * _seconds_a_face(create_teacher(REFERENCE).to(config.device))
    students = (2 if teacher.bootstrap and how.mode != "c" else 1) if how.trains else 0
    sizes = {*config.evaluate.px, create_student(how.student).input_px}
    return {
        "data": (count + more) * _DETECT,
        "teacher": seconds,
        "adapt": students * _seconds_to_adapt(config, teacher.embedding_dim, people),
        "distill": students * how.steps * _seconds_a_step(config),
        "evaluate": tested * (1 + len(sizes)) * a_face,
    }


def _tuning_faces(config: Config, tested: int) -> int:
    """How many faces' embedding takes as long as the teacher's fine-tuning."""
    how = config.teacher.finetune
    if how.method == "none":
        return 0
    views = {"octuplet": 1 + how.copies, "qgface": 1 + how.both_views}.get(how.method, 1)
    # Forward and backward take three times the forward pass; the anchors ask the teacher as it was, too.
    passes = 3 * views + (how.method == "octuplet" and (how.anchor > 0 or how.relational > 0))
    checked = (config.teacher.checks + 1) * len(CROSS_PX) * min(tested, 2 * config.teacher.check_pairs)
    return how.steps * how.accumulate * (how.batch + how.unlabelled) * passes + checked


# Detecting and aligning one face of about 100 px on one core.
_DETECT = 0.012


def _seconds_a_face(teacher: Teacher | Ensemble, batch: int = 16) -> float:
    return sum(_seconds_a_crop(one, batch) for one in teacher.members)


def _seconds_a_crop(teacher: Teacher, batch: int) -> float:
    images = torch.zeros(batch, 3, teacher.input_px, teacher.input_px, device=teacher.device)
    forward = getattr(teacher.backbone, "features", teacher.backbone) if teacher.bootstrap else teacher
    with torch.inference_mode(), threads(cores()):
        forward(images)
        began = _clock(teacher.device)
        forward(images)
        return (_clock(teacher.device) - began) / batch


def _clock(device: torch.device) -> float:
    """The time when all that was asked of the device is done: a GPU works on while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _seconds_to_adapt(config: Config, width: int, people: int) -> float:
    """Of both fits of stage adapt, whose classification layers grow with the people."""
    how, began = config.adapt, list[float]()
    features = np.random.default_rng(0).standard_normal((how.batch, width)).astype(np.float32)
    labels = np.linspace(0, people - 1, how.batch).astype(np.int64) if people else np.full(how.batch, -1)
    fit_adapter(features, labels, replace(how, steps=_STEPS), 0, lambda _: began.append(time.perf_counter()))
    # Without people there is no softmax layer to fit first, and half as many steps.
    return how.steps * len(began) / _STEPS * float(np.diff(began)[2:].mean())


def _seconds_a_step(config: Config) -> float:
    student = create_student(config.distill.student)
    how = replace(config.distill, samples=_STEPS * config.distill.batch)
    side = crop_side(max((student.input_px, *how.sizes)), how.margin)
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (how.batch, side, side, 3), dtype=np.uint8)
    targets = rng.standard_normal((how.batch, EMBEDDING_DIM)).astype(np.float32)
    examples = Examples(crops, how.margin, targets, np.arange(how.batch))
    began = []
    train_student(student, examples, how, 0, config.device, progress=lambda _: began.append(time.perf_counter()))
    # The first steps warm up.
    return (began[-1] - began[2]) / (len(began) - 3)
