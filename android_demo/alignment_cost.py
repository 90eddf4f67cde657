"""What it costs to align by fewer points, or by those of the demo's finder:

python -m android_demo.alignment_cost ARTIFACT --data FACES.tar --pairs PAIRS.csv
"""

from pathlib import Path

import click
import numpy as np

from android_demo import finder
from export import crops, runtimes
from faces import open_faces
from faces.cli import run_cli
from faces.verification import Pairs, best_threshold, read_pairs, similarity


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="SPEC", help="Faces whose five points are known.")
@click.option("--pairs", "file", required=True, type=click.Path(path_type=Path), help="key_a,key_b,same,fold.")
@run_cli
def main(artifact: Path, data: str, file: Path) -> None:
    """Verification accuracy on fixed pairs by the data's five points, by some of them, by the demo's finder."""
    opened = runtimes.load(artifact)
    faces = open_faces(data)
    pairs = read_pairs(file, faces.keys)
    ways: dict[str, np.ndarray] = {"five points": faces.landmarks}
    for name, kept in (("eyes and nose", 3), ("eyes alone", 2)):
        ways[name] = faces.landmarks.copy()
        ways[name][:, kept:] = np.nan
    found = [finder.detect(image) for image in faces.images]
    missed = [i for i, points in enumerate(found) if points is None]
    ways["the demo's finder"] = np.stack(
        [faces.landmarks[i] if points is None else points for i, points in enumerate(found)]
    )
    rows = {}
    for name, landmarks in ways.items():
        embeddings = opened.embed(crops.model_crops(faces.images, landmarks, opened.sidecar))
        scores = similarity(embeddings[pairs.a], embeddings[pairs.b], opened.sidecar.metric)
        rows[name] = right(scores, pairs)
    click.echo(f"{len(faces)} faces, {len(pairs.a)} pairs; the finder missed {len(missed)} faces (given five points)")
    click.echo("| aligned by | accuracy, % | points from five |\n|---|--:|--:|")
    base = rows["five points"]
    for name, hits in rows.items():
        low, high = interval(hits.astype(float) - base) if hits is not base else (0.0, 0.0)
        difference = 100 * (hits.mean() - base.mean())
        told = "-" if hits is base else f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"
        click.echo(f"| {name} | {100 * hits.mean():.2f} | {told} |")


def right(scores: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(P,) bool: was the pair judged rightly by the threshold of the other folds?"""
    hits = np.empty(len(scores), dtype=bool)
    for fold in range(pairs.folds):
        inside = pairs.fold == fold
        threshold = best_threshold(scores[~inside], pairs.same[~inside])
        hits[inside] = (scores[inside] >= threshold) == pairs.same[inside]
    return hits


def interval(differences: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95% interval of the mean, percentage points, pairs resampled."""
    rng = np.random.default_rng(0)
    means = [differences[rng.integers(0, len(differences), len(differences))].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


if __name__ == "__main__":
    main()
