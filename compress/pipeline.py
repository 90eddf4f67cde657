"""From a large face-recognition model to a tiny one, proved: the stages in order, and the command.

python -m compress.pipeline --teacher swin_b --student tiny16
"""

import re
from pathlib import Path

import click

from compress import adapt, android, artifacts, bench, collect, data, distill, evaluate, head_study, plan, teach
from compress.config import PRESETS, load_config
from compress.idle import refuse_idle
from compress.run import Run, Stage
from faces.cli import SEED, Output, run_cli
from faces.distributed import follow, processes
from students.registry import list_students
from teachers.registry import PATTERNS, list_teachers
from teachers.settings import DEFAULTS as METHODS

# Name, work, settings, the stages it reads, the sources it depends on besides those stages'.
DATA = Stage(
    "data", data.run, data.settings, (),
    ("faces/dataset.py", "faces/align.py", "faces/archive.py", "faces/sources", "faces/store.py", "compress/data.py"),
)  # fmt: skip
TEACHER = Stage(
    "teacher", teach.run, teach.settings, (DATA,),
    ("teachers", "faces/losses", "faces/degrade.py", "faces/distributed.py", "faces/memory.py", "faces/threads.py",
     "faces/quality.py", "faces/quality_cli.py", "faces/cnniqa.py", "faces/partition.py", "faces/cnniqa_fit.py",
     "faces/pyiqa_metric.py", "compress/teach.py", "compress/tune.py"),
)  # fmt: skip
ADAPT = Stage("adapt", adapt.run, adapt.settings, (TEACHER,), ("compress/adapt.py",))
DISTILL = Stage(
    "distill", distill.run, distill.settings, (ADAPT,),
    ("students", "faces/crops.py", "faces/degrade.py", "compress/distill.py"),
)  # fmt: skip
EXPORT = Stage(
    "export", artifacts.run, artifacts.settings, (DISTILL,),
    ("export", "faces/intervals.py", "faces/verification.py", "compress/artifacts.py"),
)  # fmt: skip
EVALUATE = Stage(
    "evaluate", evaluate.run, evaluate.settings, (EXPORT,),
    ("faces/intervals.py", "faces/verification.py", "compress/evaluate.py", "compress/strip.py"),
)  # fmt: skip
BENCHMARK = Stage("benchmark", bench.run, bench.settings, (EXPORT,), ("benchmarks", "compress/bench.py"))
REPORT = Stage(
    "report", collect.run, collect.settings, (EVALUATE, BENCHMARK),
    ("compress/collect.py", "compress/report.py", "compress/results.py", "compress/result_artifacts.py",
     "compress/plots.py", "compress/figures.py", "compress/words.py", "compress/strip.py", "compress/templates"),
)  # fmt: skip
STAGES = (DATA, TEACHER, ADAPT, DISTILL, EXPORT, EVALUATE, BENCHMARK, REPORT)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--teacher", required=True, metavar="NAME", help=f"One of: {', '.join(list_teachers())}, {PATTERNS}.")
@click.option("--student", metavar="NAME", help=f"One of: {', '.join(list_students())}. Default: tiny16.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Default: quick, or standard with --data.")
@click.option(
    "--data",
    "specs",
    multiple=True,
    metavar="SPEC",
    help="Public faces: `orl`, a folder with one folder a person, a .tar shard or a folder of shards. Repeats.",
)
@click.option("--val", metavar="SPEC", help="Test people of your own instead of a quarter of the public ones.")
@click.option(
    "--teacher-method",
    type=click.Choice(list(METHODS)),
    help="How the teacher is adapted to low resolution. Default: none in quick, else petalface for transformers, "
    "octuplet for convolutional teachers.",
)
@click.option("--teacher-weights", metavar="FILE|hub", help="safetensors or torch file, or `hub` to download.")
@click.option(
    "--student-weights",
    metavar="FILE|zoo",
    help="Start from a safetensors file, or from the package's own trained student. With --set distill.samples=0 they "
    "stay as they are, and are exported, proved and measured.",
)
@click.option(
    "--stages",
    metavar="LIST",
    help=f"Only these, e.g. export,report. All: {', '.join(s.name for s in STAGES)}.",
)
@click.option("--export-teacher", is_flag=True, help="Export the teacher too: ONNX in fp32 and fp16.")
@click.option("--android", "app", is_flag=True, help="Build the demo app around the student (from a checkout).")
@click.option(
    "--finetune-head",
    metavar="SPEC",
    help="Then fit the student's softmax layer to the people of this set (`compress.study head`).",
)
@click.option("--out", type=Output(folder=True), help="Run folder. Default: runs/TEACHER-STUDENT-PRESET.")
@click.option("--config", "file", metavar="FILE.toml", help="Settings from a file; options and --set win over it.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. distill.loss=regression. Repeats.")
@click.option("--seed", type=SEED, help="Of the split, the initial weights and the degradation.")
@click.option("--device", metavar="DEVICE", help="cpu (default), cuda or cuda:N.")
@click.option("--resume/--fresh", default=True, help="Continue in the run folder (default), or start anew in it.")
@click.option("--dry-run", is_flag=True, help="Say what would run, how long and how large, and stop.")
@run_cli
def main(
    teacher: str,
    student: str | None,
    preset: str | None,
    specs: tuple[str, ...],
    val: str | None,
    teacher_method: str | None,
    teacher_weights: str | None,
    student_weights: str | None,
    stages: str | None,
    export_teacher: bool,
    app: bool,
    finetune_head: str | None,
    out: Path | None,
    file: str | None,
    settings: tuple[str, ...],
    seed: int | None,
    device: str | None,
    resume: bool,
    dry_run: bool,
) -> None:
    """Distil TEACHER into STUDENT for low-resolution faces; export, prove, measure and report it.

    The run folder gets results.json, report.html, MODEL_CARD.md and the artifacts with their sidecars. A run
    that was stopped continues with the same command. Without --data it trains on the 396 usable ORL faces that
    a pip package ships, in minutes.

    \b
      python -m compress.pipeline --teacher dlib_resnet --student tiny16
      python -m compress.pipeline --teacher dlib_resnet --student tiny32 --data faces/ --seed 1
      python -m compress.pipeline --teacher dlib_resnet --student small16 --student-weights zoo --set distill.samples=0
      python -m compress.pipeline --teacher swin_b --teacher-weights swin.safetensors --data faces/
      torchrun --nproc-per-node 8 -m compress.pipeline --teacher-method none --data shards/ --device cuda
    """
    preset = preset or ("standard" if specs else "quick")
    options = {
        "data.public": list(specs) or None,
        "data.val": val,
        "teacher.name": teacher,
        "teacher.finetune.method": teacher_method,
        "teacher.weights": teacher_weights,
        "distill.student": student,
        "distill.weights": student_weights,
        "export.teacher": export_teacher or None,
    }
    config = load_config(preset, file, options, settings, seed=seed, device=device)
    refuse_idle([config], settings, spared=() if finetune_head is None else head_study.READS)
    chosen = plan.choose(STAGES, stages)
    # A teacher's name may hold a path and options.
    name = re.sub(r"[^\w.+-]+", "_", config.teacher.name)[:60]
    folder = out or Path("runs") / f"{name}-{config.distill.student}-{preset}"
    plan.check(config, folder)
    if app:
        android.check(config)
    if finetune_head is not None:
        head_study.check(finetune_head)
    if not resume:
        plan.check_fresh(chosen)
    if dry_run:
        plan.show(chosen, folder, config)
        return
    with processes(config.device) as leads:
        if not leads:
            follow()
            return
        with Run.open(folder, config, fresh=not resume) as run:
            for note in plan.notes(config):
                run.say(note)
            for stage in chosen:
                run.execute(stage)
            if old := [one.name for one in STAGES if run.record(one.name) and not run.is_done(one)]:
                run.say(f"note       what {', '.join(old)} left here is of an earlier run: run these stages too")
            if app:
                android.build(run)
            if finetune_head is not None:
                run.need(DISTILL, what="--finetune-head")
                head_study.after_run(run, finetune_head)


if __name__ == "__main__":
    main()
