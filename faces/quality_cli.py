"""`python -m faces.quality`: fit a quality score on faces, score images with one."""

import math
from pathlib import Path

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from faces.align import crop
from faces.cli import SEED, Output, run_cli
from faces.cnniqa_fit import STEPS, fit_cnniqa
from faces.dataset import concatenate, told_together
from faces.errors import UserError
from faces.quality import LOW_PX, Alpha, Quality, alpha_percentiles, create_quality, fit_map, save
from faces.sources import open_faces
from faces.sources.record import decode


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """No-reference quality of face images, in [0, 1], higher is better."""


@main.command()
@click.option("--data", "specs", multiple=True, required=True, help="Faces: orl, a folder or a .tar; repeat for more.")
@click.option("--out", type=Output(".safetensors"), required=True, help="The .safetensors file to write.")
@click.option(
    "--metric", help="Fit only the map to [0, 1] of this metric: a pyiqa name, or a torch file of grey CNN-IQA weights."
)
@click.option("--weights", type=click.Path(path_type=Path), help="The pyiqa metric's weights file.")
@click.option("--lower-better/--higher-better", default=None, help="Which scores of a torch file are the good ones.")
@click.option("--steps", type=click.IntRange(1), show_default=str(STEPS), help="Training steps.")
@click.option("--seconds", type=click.FloatRange(1), help="Choose the steps by the clock instead.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--detector", default="dlib", show_default=True, help="For data without landmarks: dlib or yunet:FILE.")
@click.option("--aligned", is_flag=True, help="The images are ArcFace crops already.")
@run_cli
def fit(
    specs: tuple[str, ...],
    out: Path,
    metric: str | None,
    weights: Path | None,
    lower_better: bool | None,
    steps: int | None,
    seconds: float | None,
    seed: int,
    detector: str,
    aligned: bool,
) -> None:
    """Fit a CNN-IQA to known degradations of faces (two CPU minutes), or the map of an existing metric."""
    if metric is None and (weights is not None or lower_better is not None):
        option = "--weights" if weights is not None else "--lower-better or --higher-better"
        raise UserError(f"{option} tells of an existing metric: give --metric too, or leave it out to fit a CNN-IQA")
    if seconds is not None and not math.isfinite(seconds):
        raise UserError(f"--seconds {seconds}: give a number of seconds")
    if metric is not None and (steps or seconds):
        raise UserError(
            f"--{'steps' if steps else 'seconds'} tells of a training, and --metric only fits a map: leave one"
        )
    if steps and seconds:
        raise UserError("--seconds chooses the steps: leave it or --steps out")
    steps = steps or STEPS
    existing = None if metric is None else create_quality(metric, weights, lower_better)
    console = Console(stderr=True)
    with _bar(console) as bar:
        reading = bar.add_task("faces read", total=None)
        parts = []
        for spec in specs:
            part = open_faces(spec, detector=detector, aligned=aligned, progress=lambda n: bar.advance(reading, n))
            for line in part.integrity.told():
                console.print(f"{spec}: {line}", highlight=False, markup=False, soft_wrap=True)
            parts.append(part)
        faces = concatenate(parts)
        for line in told_together(parts, faces):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        bar.update(reading, total=len(faces), completed=len(faces))
        crops = crop(faces.images, faces.landmarks, "arcface")
        if existing is None:
            training = bar.add_task("steps", total=None if seconds else steps)
            network, report = fit_cnniqa(
                crops, faces.identities, seed, steps=steps, seconds=seconds,
                progress=lambda n: bar.advance(training, n),
                planned=lambda total: bar.update(training, total=total),
            )  # fmt: skip
            quality = Quality(network, "fitted CNN-IQA", lower_better=False)
        else:
            quality, report = existing, {}
        report["map"] = fit_map(quality, crops, seed)
    save(quality, out, report)
    module = Alpha.of(quality, crops, seed)
    table = Table(
        box=box.SIMPLE, title=f"{out}: {quality.name}{'; Spearman on held-out people' if metric is None else ''}"
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    for kind, value in report.get("spearman", {}).items():
        kept = " (kind never trained on)" if kind == report["held_out_kind"] else ""
        table.add_row(f"Spearman, {kind}{kept}", f"{value:.3f}")
    table.add_row(f"pairs in which the full face beats a {LOW_PX} px one", f"{report['map']['separation']:.3f}")
    table.add_row("t = mu + sigma of these faces", f"{float(module.t):.3f}")
    chosen = np.random.default_rng([seed, 909]).permutation(len(crops))[:256]
    for name, values in alpha_percentiles(module, crops[chosen]).items():
        label = "full size" if name == "full" else f"{name} px"
        table.add_row(f"alpha at {label}, 5 / 50 / 95 %", " / ".join(f"{value:.2f}" for value in values))
    Console().print(table)


@main.command()
@click.argument("spec")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--weights", type=click.Path(path_type=Path), help="The pyiqa metric's weights file, as it was to `fit`.")
@run_cli
def score(spec: str, images: tuple[Path, ...], weights: Path | None) -> None:
    """Quality of IMAGES (aligned face crops), best first, by a FILE that `fit` wrote.

    The name of a pyiqa metric instead gives that metric's own scores, which are not in [0, 1].
    """
    quality = create_quality(spec, weights)
    fitted = bool(quality.slope > 0)
    if not fitted:
        good = "lower" if quality.lower_better else "higher"
        click.echo(f"own scores of {quality.name}, {good} is better; a score in [0, 1]: fit --metric {spec}", err=True)
    found = []
    with _bar(Console(stderr=True)) as bar:
        for path in bar.track(images, description="images"):
            image = decode(path.read_bytes())
            if image is None:
                raise UserError(f"{path} is no image that can be read")
            found.append((float((quality.of if fitted else quality.scores)(image[None])[0]), path))
    sign = -1 if quality.lower_better and not fitted else 1
    for value, path in sorted(found, key=lambda row: -row[0]):
        click.echo(f"{sign * value:.4f}  {path}")


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=console, transient=True,
    )  # fmt: skip
