"""Embeddings of a folder of photos, as one .npz file. Needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from export import crops, runtimes, usable
from export.runtimes import Artifact
from faces.cli import Output, run_cli
from faces.dataset import Progress as Advance
from faces.errors import UserError
from faces.files import whole
from faces.sources.folder import SUFFIXES
from faces.sources.record import decode
from faces.store import in_threads

_MOST_NAMED = 3


@dataclass
class Embedded:
    """embeddings: (N, D) float32; keys: N paths below the folder; missed: keys without a face found; unreadable: keys
    of files that are no readable image."""

    embeddings: np.ndarray
    keys: list[str]
    missed: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def find_images(folder: Path) -> list[Path]:
    """Image files at any depth of `folder`, sorted, hidden ones left out. UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        raise UserError(f"no images in {folder}: files end in {', '.join(sorted(SUFFIXES))}")
    return found


def embed_folder(
    artifact: Artifact,
    folder: Path,
    detector: str = "dlib",
    *,
    aligned: bool = False,
    batch: int = 64,
    progress: Advance | None = None,
) -> Embedded:
    """Embed the largest face of every image file of `folder`, cut as the artifact's sidecar says.

    Memory holds `batch` faces at a time. Equal images are embedded each. Raises UserError where no face is left, and
    where an embedding is not finite; before all work, where the file takes an alpha with each face.
    """
    contract = artifact.sidecar
    usable.check(contract)
    paths = find_images(folder)
    result = Embedded(np.empty((0, contract.embedding_dim), dtype=np.float32), [])
    parts = [result.embeddings]
    waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def flush() -> None:
        if waiting:
            images, landmarks = (np.stack(part) for part in zip(*waiting, strict=True))
            parts.append(artifact.embed(crops.model_crops(images, landmarks, contract), batch))
            waiting.clear()

    for path, image in _images(paths):
        key = path.relative_to(folder).as_posix()
        found = None if image is None else crops.loose(image, detector, aligned)
        if image is None:
            result.unreadable.append(key)
        elif found is None:
            result.missed.append(key)
        else:
            result.keys.append(key)
            waiting.append(found)
        if len(waiting) == batch:
            flush()
        if progress:
            progress(1)
    flush()
    result.embeddings = np.concatenate(parts)
    if not result.keys:
        raise UserError(f"none of the {len(paths)} images of {folder} shows a face ({_counts(result)})")
    broken = np.flatnonzero(~np.isfinite(result.embeddings).all(1))
    if len(broken):
        raise UserError(f"{artifact.path}: the embedding of {result.keys[broken[0]]} is not finite")
    return result


def _images(paths: list[Path]) -> Iterator[tuple[Path, np.ndarray | None]]:
    """Each file's image, RGB uint8, or None where it is unreadable."""

    def read(path: Path) -> tuple[Path, np.ndarray | None]:
        try:
            return path, decode(path.read_bytes())
        except OSError:
            return path, None

    return in_threads(read, paths)


def save(result: Embedded, path: Path) -> None:
    """Write `embeddings` (N, D) float32 and `keys` (N,) as .npz, whole."""
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, embeddings=result.embeddings, keys=np.array(result.keys, dtype=str))


def _counts(result: Embedded) -> str:
    return "; ".join(
        f"{what}: {len(keys)}{_named(keys)}"
        for what, keys in (("no face found", result.missed), ("unreadable", result.unreadable))
    )


def _named(keys: list[str]) -> str:
    if not keys:
        return ""
    shown = ", ".join(click.format_filename(key) for key in keys[:_MOST_NAMED])
    return f" ({shown}{', ...' if len(keys) > _MOST_NAMED else ''})"


@click.command("embed")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=Output(".npz"), required=True, help="The .npz file to write.")
@click.option("--detector", default="dlib", show_default=True, help="dlib or yunet:FILE.")
@click.option("--aligned", is_flag=True, help="The images are ArcFace crops already.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Faces embedded at once.")
@run_cli
def embed_command(artifact: Path, folder: Path, out: Path, detector: str, aligned: bool, batch: int) -> None:
    """Embed every image below FOLDER: `embeddings` (N, D) and `keys` (N,), the images' paths, in one .npz."""
    opened = runtimes.load(artifact)
    total = len(find_images(folder))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    silent = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=silent) as bar:
        task = bar.add_task("images", total=total)
        result = embed_folder(
            opened, folder, detector, aligned=aligned, batch=batch, progress=lambda n: bar.advance(task, n)
        )
    save(result, out)
    click.echo(f"{out}: {len(result.keys)} embedded; {_counts(result)}")
    if caution := usable.caution(opened.sidecar):
        click.echo(f"caution: {caution}")
