"""What it costs to align by fewer points, or by those of the demo's finder:

python -m android_demo.alignment_cost ARTIFACT --data FACES.tar --pairs PAIRS.csv
"""

from pathlib import Path

import click
import numpy as np

from android_demo import finder
from benchmarks.output import cell, gap_cell
from export import crops, runtimes
from faces.cli import run_cli
from faces.parts import open_parts
from faces.verification import correct_by_fold, similarity


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="SPEC", help="Faces whose five points are known.")
@click.option("--pairs", "file", required=True, type=click.Path(path_type=Path), help="key_a,key_b,same,fold.")
@run_cli
def main(artifact: Path, data: str, file: Path) -> None:
    """Verification accuracy on fixed pairs by the data's five points, by some of them, by points that are off (each
    coordinate by so much, one sigma), by the demo's finder."""
    opened = runtimes.load(artifact)
    (part,) = open_parts([(data, str(file))])
    faces, pairs = part.faces, part.pairs
    ways: dict[str, np.ndarray] = {"five points": faces.landmarks}
    for name, kept in (("eyes and nose", 3), ("eyes alone", 2)):
        ways[name] = faces.landmarks.copy()
        ways[name][:, kept:] = np.nan
    eyes = np.linalg.norm(faces.landmarks[:, 0] - faces.landmarks[:, 1], axis=1)[:, None, None]
    noise = np.random.default_rng(0).standard_normal(faces.landmarks.shape).astype(np.float32) * eyes
    for share in (0.05, 0.1):
        ways[f"each point off by {share:.0%} of the eyes' distance"] = faces.landmarks + share * noise
    found = [finder.detect(image) for image in faces.images]
    missed = [i for i, points in enumerate(found) if points is None]
    ways["the demo's finder"] = np.stack(
        [faces.landmarks[i] if points is None else points for i, points in enumerate(found)]
    )
    rows = {}
    for name, landmarks in ways.items():
        embeddings = opened.embed(crops.model_crops(faces.images, landmarks, opened.sidecar))
        scores = similarity(embeddings[pairs.a], embeddings[pairs.b], opened.sidecar.metric)
        rows[name] = correct_by_fold(scores, pairs).astype(float)
    click.echo(f"{len(faces)} faces, {len(pairs.a)} pairs; the finder missed {len(missed)} faces (given five points)")
    click.echo("| aligned by | accuracy, % | points from five |\n|---|--:|--:|")
    for name, right in rows.items():
        gap = None if name == "five points" else part.interval(right - rows["five points"])
        click.echo(f"| {name} | {cell(part.interval(right))} | {gap_cell(gap)} |")


if __name__ == "__main__":
    main()
