"""Pack faces of any source into webdataset tar shards: `python -m faces.shards --help`."""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from faces import align
from faces.cli import SEED, Output, run_cli
from faces.dataset import CROP_PX, Faces, concatenate, told_together
from faces.dataset import Progress as Advance
from faces.errors import UserError
from faces.files import fingerprint, lock, whole, write_json
from faces.sources import open_faces, shards
from faces.sources.reader import spec_path
from faces.sources.record import COLOURS, decode
from faces.store import in_threads

PLAN = "shards.json"
_CHUNK = 64
_QUALITY = {"jpg": cv2.IMWRITE_JPEG_QUALITY, "webp": cv2.IMWRITE_WEBP_QUALITY}


def pack(
    faces: Faces,
    out: Path,
    *,
    size: int = CROP_PX,
    per_shard: int = 5000,
    suffix: str = "jpg",
    quality: int = 95,
    seed: int = 0,
    progress: Advance | None = None,
) -> list[Path]:
    """Write `faces` as `out/faces-00000.tar` and on, `per_shard` a file, in an order drawn by `seed`.

    A sample is KEY.`suffix`, `size` px, and KEY.json: identity (name or null), landmarks in that image, the face's
    own key. A shard appears whole or not at all, the same bytes each time; one that is there from the same faces
    and settings is not written again. UserError: `out` holds shards of others.
    """
    order = np.random.default_rng([seed, 606]).permutation(len(faces))
    parts = [order[start : start + per_shard] for start in range(0, len(order), per_shard)]
    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        _claim(out, faces, [size, per_shard, suffix, quality, seed], [len(part) for part in parts])
        for half in out.glob(".faces-*.tmp.tar"):
            half.unlink()  # left by a run that was killed
        paths = [out / f"faces-{number:05d}.tar" for number in range(len(parts))]
        for path, part in zip(paths, parts, strict=True):
            if path.exists():
                if progress:
                    progress(len(part))
                continue
            with whole(path) as temporary, tarfile.open(temporary, "w") as archive:
                encode = _Encoder(faces, size, suffix, quality)
                for member, data in (file for files in in_threads(encode, _loaded(faces, part)) for file in files):
                    archive.addfile(member, io.BytesIO(data))
                    if progress and member.name.endswith(".json"):
                        progress(1)
    return paths


def check(folder: Path, progress: Advance | None = None) -> dict[str, Any]:
    """Read every shard of `folder` again: {"shards", "faces", "identities", "unlabelled"}; whoever is shown
    once counts as unlabelled, as in `faces.sources`.

    UserError: no shards, a shard that the plan beside them lacks or announces otherwise, an image that cannot be
    read, or a key that occurs twice.
    """
    paths = sorted(folder.glob("[!.]*.tar"))
    if not paths:
        raise UserError(f"no .tar shard in {folder}")
    people: Counter[str | None] = Counter()
    counts: dict[str, int] = {}
    for path in paths:
        keys = set()
        records = in_threads(lambda record: (record, decode(record.data) is None), shards.read(path))
        for record, broken in records:
            if broken:
                problem = record.problem or "no readable image"
                raise UserError(f"{record.key} in {path}: {problem}; delete the shard and pack it again")
            if record.key in keys:
                raise UserError(f"{record.key} occurs twice in {path}: delete the shard and pack it again")
            keys.add(record.key)
            people[record.identity] += 1
            if progress:
                progress(1)
        counts[path.name] = len(keys)
    if (plan := _plan(folder)) is not None and plan["shards"] != counts:
        wrong = sorted(name for name in plan["shards"].keys() | counts if plan["shards"].get(name) != counts.get(name))
        raise UserError(
            f"{len(wrong)} of {len(plan['shards'])} shards in {folder} are missing or not as planned, e.g. {wrong[0]}: "
            "run `make` again with the same settings"
        )
    known = {name: count for name, count in people.items() if name is not None and count > 1}
    return {
        "shards": len(paths),
        "faces": sum(counts.values()),
        "identities": len(known),
        "unlabelled": sum(people.values()) - sum(known.values()),
    }


def _plan(folder: Path) -> dict[str, Any] | None:
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_bytes())
        if {type(count) for count in plan["shards"].values()} <= {int} and isinstance(plan["made_from"], str):
            return plan
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise UserError(f"{path} is no plan of shards: delete it and the shards, and pack again")


def _claim(out: Path, faces: Faces, settings: list[Any], counts: list[int]) -> None:
    """Write the plan, or find the same one. Before the first shard: those of another plan are never mixed in."""
    # An aligned set keeps its landmarks when its photos change.
    photos = hashlib.sha256()
    if faces.photos is not None:
        photos.update(faces.photos.tobytes())
    else:
        for start in range(0, len(faces), _CHUNK):
            photos.update(faces.images[start : start + _CHUNK].tobytes())
    same = fingerprint([settings, faces.state(), photos.hexdigest()])
    plan = _plan(out)
    if plan is None and any(out.glob("[!.]*.tar")):
        raise UserError(f"{out} holds .tar files that were not packed here: choose another --out")
    if plan is not None and plan["made_from"] != same:
        raise UserError(f"{out} holds shards of other faces or settings: choose another --out, or delete it")
    if plan is None:
        names = {f"faces-{number:05d}.tar": count for number, count in enumerate(counts)}
        write_json(out / PLAN, {"made_from": same, "source": faces.source, "licence": faces.licence, "shards": names})


def _loaded(faces: Faces, part: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    # Whole chunks, as undecoded images are then read by all threads.
    for start in range(0, len(part), _CHUNK):
        rows = part[start : start + _CHUNK]
        yield from zip(rows.tolist(), faces.images[rows], strict=True)


class _Encoder:
    """(index, image) -> the two members of the sample and their bytes."""

    def __init__(self, faces: Faces, size: int, suffix: str, quality: int) -> None:
        self.faces, self.size, self.suffix = faces, size, suffix
        self.options = [_QUALITY[suffix], quality] if suffix in _QUALITY else []

    def __call__(self, face: tuple[int, np.ndarray]) -> list[tuple[tarfile.TarInfo, bytes]]:
        index, image = face
        points = self.faces.landmarks[index].astype(np.float64)
        if self.size != CROP_PX:
            scale = self.size / CROP_PX
            shift = (scale - 1) / 2
            image = align.warp(image, np.array([[scale, 0, shift], [0, scale, shift]]), self.size)
            points = points * scale + shift
        done, data = cv2.imencode(f".{self.suffix}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), self.options)
        assert done, "a crop is encodable"
        person = self.faces.identities[index]
        note = {
            "identity": self.faces.names[person] if person >= 0 else self.faces.alone.get(index),
            "landmarks": [[None if np.isnan(v) else round(v, 4) for v in point] for point in points.tolist()],
            "key": self.faces.keys[index],
        }
        key = sanitised(index, self.faces.keys[index])
        # Escaped, as a folder's name may hold bytes that are no text.
        text = json.dumps(note, ensure_ascii=True, allow_nan=False).encode()
        return [_member(f"{key}.{self.suffix}", data.tobytes()), _member(f"{key}.json", text)]


def sanitised(index: int, key: str) -> str:
    """A unique name of a sample from its index and the end of the face's key: no dot, slash or space in it."""
    return f"{index:08d}-{re.sub('[^A-Za-z0-9_]+', '-', key)[-48:].strip('-')}"


def _member(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    # Owner, mode and time as tarfile sets them (nobody, 1970): the same bytes each time.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member, data


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--data", "specs", multiple=True, required=True, help="A source of faces; repeats.")
@click.option("--out", type=Output(folder=True), required=True, help="Folder of the shards.")
@click.option("--size", type=click.IntRange(16, 1024), default=CROP_PX, help=f"Side in px; {CROP_PX} = no resampling.")
@click.option("--per-shard", type=click.IntRange(1), default=5000, help="Faces a shard.")
@click.option("--quality", type=click.IntRange(1, 100), default=95, help="Of JPEG and WebP.")
@click.option("--format", "suffix", type=click.Choice(["jpg", "webp", "png"]), default="jpg")
@click.option("--colour", type=click.Choice(COLOURS), default="rgb", help="Channel order of the source's files.")
@click.option("--detector", default="dlib", help="dlib or yunet:FILE, for images without landmarks.")
@click.option("--aligned", is_flag=True, help="The images are ArcFace crops already.")
@click.option("--seed", type=SEED, default=0, help="Draws the order of the faces.")
@run_cli
def make(specs: tuple[str, ...], out: Path, colour: str, detector: str, aligned: bool, **settings: Any) -> None:
    """Check, align and pack faces. The same command continues where it was stopped."""
    if any(spec != "orl" and out.resolve().is_relative_to(spec_path(spec).resolve()) for spec in specs):
        raise UserError(
            f"--out {out} is or lies in one of --data: shards among photos make it two sets; choose another"
        )
    parts = []
    for spec in specs:
        with _progress(f"reading {spec}", None) as advance:
            how: dict[str, Any] = {"detector": detector, "aligned": aligned, "colour": colour}
            part = open_faces(spec, lazy=True, progress=advance, **how)
        parts.append(part)
        for line in part.integrity.told():
            click.echo(f"{spec}: {line}", err=True)
    faces = concatenate(parts)
    for line in told_together(parts, faces):
        click.echo(line, err=True)
    with _progress("packing", len(faces)) as advance:
        paths = pack(faces, out, progress=advance, **settings)
    click.echo(f"{len(faces)} faces of {len(faces.names)} people in {len(paths)} shards in {out}")


@main.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@run_cli
def check_command(folder: Path) -> None:
    """Read the shards of FOLDER again and count what they hold."""
    plan = _plan(folder)
    with _progress("checking", None if plan is None else sum(plan["shards"].values())) as advance:
        found = check(folder, advance)
    click.echo("{faces} faces of {identities} people in {shards} shards, {unlabelled} unlabelled".format(**found))


if __name__ == "__main__":
    main()
