"""Fine-tune a teacher for low-resolution faces, alone or under torchrun.

python -m teachers.finetune --method octuplet --teacher dlib_resnet --data faces/ --out runs/octuplet
torchrun --nproc-per-node 8 -m teachers.finetune --method petalface --teacher swin_b --strategy fsdp ...
"""

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from faces.cli import SEED, Output, run_cli
from faces.dataset import Faces, check_strangers, concatenate, find_leaks, split_identities, split_strangers
from faces.distributed import rank
from faces.errors import UserError
from faces.files import fingerprint, lock, whole
from faces.sources import open_faces
from faces.verification import Pairs, make_pairs, read_pairs
from teachers.alpha import ALPHA, prepare_alpha
from teachers.backbones.bootstrap import Bootstrap
from teachers.evaluate import CROSS_PX, accuracies, pair_scores
from teachers.fabric import PRECISIONS, STRATEGIES, create_fabric
from teachers.loop import Check, Row, check_unadapted, finetune
from teachers.methods.base import kind_of
from teachers.registry import PATTERNS, create_single, list_teachers
from teachers.settings import DEFAULTS, Finetune, finetune_settings, refuse_idle
from teachers.teacher import Teacher
from teachers.tuned import save_tuned

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TUNED, CURVE = "teacher.safetensors", "finetune.csv"


def finetune_teacher(
    teacher: Teacher,
    faces: Faces,
    how: Finetune,
    seed: int,
    folder: Path,
    fabric: "Fabric",
    *,
    base: str | Path | None,
    base_seed: int = 0,
    progress: Callable[[int, str], None] | None = None,
    check: Check | None = None,
    **options: Any,
) -> list[Row]:
    """Fine-tune in place and write FOLDER/teacher.safetensors and finetune.csv; returns the curve.

    base, base_seed: what the teacher's weights came from, for whoever loads the file. The rest is as in
    `teachers.loop`.
    """
    if not teacher.trainable:
        raise UserError(f"{teacher.name} is frozen and cannot be fine-tuned: give another --teacher")
    check_unadapted(teacher)
    kind = kind_of(how.method)
    if kind.needs_alpha:
        teacher.alpha = prepare_alpha(teacher, faces, how, seed, folder, fabric)
    curve = finetune(teacher, faces, how, seed, fabric, folder, progress=progress, check=check, **options)
    if rank() == 0:
        save_tuned(folder / TUNED, teacher, how, base, base_seed)
        write_curve(folder / CURVE, curve)
    fabric.barrier()
    return curve


def resolution_check(test: Faces, pairs: Pairs, sizes: tuple[int | None, ...] = CROSS_PX) -> Check:
    """A check for the loop: accuracy (percent) at full size and cross@p."""

    def check(teacher: Any) -> Row:
        found = accuracies(pair_scores(teacher, test, pairs, sizes), pairs, test.identities)
        return {name: one["accuracy"] for name, one in found.items()}

    return check


def write_curve(path: Path, curve: list[Row]) -> None:
    """CSV with a column for every name that occurs in a row."""
    columns = list(dict.fromkeys(name for row in curve for name in row))
    with whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(curve)


@contextlib.contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar with the time left and a few words; takes (steps just done, words). Silent where nobody watches."""
    columns = (TextColumn("fine-tune"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[words]}"), console=console, transient=True,
                  disable=not console.is_terminal or rank() > 0) as bar:  # fmt: skip
        task = bar.add_task("fine-tune", total=total, words="")
        yield lambda count, words: bar.update(task, advance=count, words=words)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--method", required=True, type=click.Choice([name for name in DEFAULTS if name != "none"]))
@click.option(
    "--teacher", "name", required=True, metavar="NAME", help=f"One of: {', '.join(list_teachers())}, {PATTERNS}."
)
@click.option("--teacher-weights", "weights", metavar="FILE|hub|random", help="Default: what a pip package ships.")
@click.option("--data", "specs", multiple=True, required=True, metavar="SPEC", help="Faces to learn from. Repeats.")
@click.option("--val", metavar="SPEC", help="Other people to measure on. Default: a tenth of the people of --data.")
@click.option("--pairs", metavar="CSV", help="Fixed pairs of --val (key_a,key_b,same,fold). Default: drawn.")
@click.option("--out", type=Output(folder=True), required=True, help="Folder; the same command continues in it.")
@click.option("--seed", default=0, show_default=True, type=SEED)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--devices", type=click.IntRange(1), help="Processes here; torchrun's own count under torchrun.")
@click.option("--strategy", default="auto", show_default=True, type=click.Choice(STRATEGIES), help="Over processes.")
@click.option("--precision", default="32", show_default=True, type=click.Choice(list(PRECISIONS)))
@click.option("--checks", default=4, show_default=True, type=click.IntRange(0), help="Of the accuracy; 0: none.")
@click.option("--lazy/--eager", default=False, help="Decode faces as they are needed: for sets beyond memory.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. lr=1e-4, steps=500, terms=hhh,lll.")
@run_cli
def main(
    method: str, name: str, weights: str | None, specs: tuple[str, ...], val: str | None, pairs: str | None, out: Path,
    seed: int, device: str, devices: int | None, strategy: str, precision: str, checks: int, lazy: bool,
    settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Fine-tune a teacher by METHOD; writes OUT/teacher.safetensors, which --teacher-weights takes.

    \b
    full       every weight, margin loss: the baseline that forgets
    lora       frozen backbone, one low-rank adapter a layer
    petalface  frozen backbone, twin adapters mixed by each image's quality
    octuplet   triplets between faces and their low-resolution copies
    qgface     AdaFace for high quality, contrastive for low, a proxy-updated queue

    OUT also gets finetune.csv (loss, learning rate, accuracy by resolution), csv/ and tensorboard/. A run that was
    killed continues with the same command to the same weights. Settings and their meaning: teachers/settings.py.
    """
    given = parse_settings(settings)
    how = finetune_settings(method, **given)
    refuse_idle(how, given)
    for option, given_one in (("--pairs", pairs), ("--val", val)):
        if given_one is not None and not checks:
            raise UserError(f"{option} is measured on, and --checks 0 measures nothing: leave one of them out")
    if pairs is not None and not Path(pairs).is_file():
        raise UserError(f"no file {pairs} (--pairs)")
    teacher = create_single(name, weights, seed=seed)
    if isinstance(teacher.backbone, Bootstrap) and not teacher.backbone.fitted:
        raise UserError(f"no trained weights for {name}: give --teacher-weights FILE or hub")
    console = Console(stderr=True)
    fabric = create_fabric(device, devices, strategy, precision, out, teacher.backbone)
    with contextlib.ExitStack() as held:
        out.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            held.enter_context(lock(out))
        public = concatenate([_open(spec, console, lazy) for spec in specs])
        check, measured_on = None, ""
        if val is not None:
            test = _open(val, console)
            if lazy:
                # Comparing images would mean decoding every face first.
                check_strangers(public, test)
                console.print("--lazy: the people of --val were compared with those of --data, their images were not")
            elif leaks := find_leaks(public, test):
                raise UserError(
                    f"--val is not independent of --data in {len(leaks)} places: {'; '.join(leaks[:3])}. Take them out"
                )
        elif checks:
            # Of a set beyond memory, finding copies would mean decoding every face first.
            if lazy:
                public, test = (public.subset(rows) for rows in split_identities(public, 0.1, seed))
            else:
                public, test, copies = split_strangers(public, 0.1, seed)
                if copies and rank() == 0:
                    console.print(f"{copies} training faces left out: nearly the same as a face to be measured on")
        if checks:
            chosen = make_pairs(test.identities, seed, 500) if pairs is None else read_pairs(Path(pairs), test.keys)
            check = resolution_check(test, chosen)
            measured_on = fingerprint([test.state(), *(part.tolist() for part in (chosen.a, chosen.b, chosen.fold))])
        advance = held.enter_context(progress_bar(console, how.steps))
        curve = finetune_teacher(
            teacher, public, how, seed, out, fabric, base=weights, base_seed=seed, progress=advance,
            check=check, checks=checks, measured_on=measured_on,
        )  # fmt: skip
    if rank() == 0:
        _tell(console, curve, out)
        if (out / ALPHA).is_file():
            points = json.loads((out / ALPHA).read_text())["percentiles_5_50_95"]
            console.print(f"alpha, 5 / 50 / 95 % of training faces: {points}", highlight=False, soft_wrap=True)


def _open(spec: str, console: Console, lazy: bool = False) -> Faces:
    faces = open_faces(spec, lazy=lazy)
    for line in faces.integrity.told() if rank() == 0 else ():
        console.print(f"{spec}: {line}", highlight=False, soft_wrap=True, markup=False)
    return faces


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """`key=value` strings: numbers, and words that `finetune_settings` reads: true, none, lists with commas."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not text:
            raise UserError(f"--set takes key=value, got {setting!r}")
        if key == "method":
            raise UserError("the method is chosen with --method, not with --set")
        found[key] = _value(text)
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _tell(console: Console, curve: list[Row], out: Path) -> None:
    measured = [row for row in curve if "full" in row]
    for row in measured[:1] + measured[-1:]:
        cells = ", ".join(f"{key} {value:.1f}%" for key, value in row.items() if key == "full" or "@" in key)
        console.print(f"step {row['step']:.0f}: {cells}", highlight=False, soft_wrap=True)
    console.print(str(out / TUNED), highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
