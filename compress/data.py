"""Stage data: read the public faces, check and align them, split them by identity."""

from pathlib import Path
from typing import Any

from compress.config import Config
from compress.run import Run, file_state
from faces import verification
from faces.dataset import (
    Faces,
    add_virtual_faces,
    concatenate,
    find_leaks,
    split_identities,
    split_strangers,
    told_together,
)
from faces.errors import UserError
from faces.files import write_json
from faces.sources import open_faces, recognise
from faces.sources.reader import spec_path
from faces.verification import Pairs

TRAIN, TEST = "work/train.npz", "work/test.npz"


def settings(config: Config) -> Any:
    """The stage's settings and the state (name, size, time) of every file it reads."""
    state = []
    for spec in (*config.data.public, *filter(None, (config.data.val, config.data.pairs))):
        path = spec_path(spec)
        # A person's folder may be a link, which the readers follow and rglob does not.
        links = [one for one in path.iterdir() if one.is_symlink() and one.is_dir()] if path.is_dir() else []
        files = sorted({file for top in (path, *links) for file in top.rglob("*")}) if path.is_dir() else [path]
        # As the readers do: a lock or a half-written file is no face.
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        stats = [(str(file), file.stat()) for file in files if file.is_file()]
        state.append([spec, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]])
    detector = file_state(config.data.detector.partition(":")[2] or None)
    return [config.data, config.distill.trains, config.seed, state, detector]


def run(run: Run) -> dict[str, Any]:
    """Writes work/train.npz, work/test.npz and split.json."""
    data = run.config.data
    parts = [_open(run, spec) for spec in data.public]
    public = concatenate(parts)
    skipped, leaks = dict(public.integrity.skipped), list[str]()
    for line in told_together(parts, public):
        run.say(f"note       {line}")
    if data.val is not None:
        train, test = public, _open(run, data.val)
        skipped |= {f"test: {reason}": count for reason, count in test.integrity.skipped.items()}
        if not len(test.labelled):
            raise UserError(f"{data.val} has no person with two faces, so nothing can be verified on it")
        leaks = find_leaks(train, test)
        if leaks and not data.allow_leaks:
            raise UserError(
                f"the test set is not independent of the training set in {len(leaks)} places: "
                f"{'; '.join(leaks[:3])}. Remove them, or accept it with --set data.allow_leaks=true"
            )
    elif data.allow_leaks:
        train, test = (public.subset(rows) for rows in split_identities(public, data.test_share, run.config.seed))
        leaks = find_leaks(train, test)
    else:
        train, test, copies = split_strangers(public, data.test_share, run.config.seed)
        if copies:
            skipped["training face nearly the same as a test face"] = copies
    if len(train) < 2:
        raise UserError("one face to learn from is too few: a student learns how faces differ. Add faces to --data")
    if run.config.distill.mode == "c" and not len(train.labelled):
        raise UserError(
            "distill.mode=c learns from labels alone, and nobody is known in --data: give people with two faces or "
            "more, or choose another mode"
        )
    # Test faces that form no pairs are found here, not after the training.
    test_pairs(test, run.config, run.config.seed)
    write_json(
        run.path("split.json"),
        {
            part: {"identities": list(faces.names), "keys": list(faces.keys)}
            for part, faces in (("train", train), ("test", test))
        },
    )
    enlarged = add_virtual_faces(train, virtual_count(run.config), run.config.seed)
    virtual = len(enlarged) - len(train)
    enlarged.save(run.path(TRAIN))
    test.save(run.path(TEST))
    missed = public.integrity.missed + (test.integrity.missed if data.val is not None else ())
    people = "people" if leaks else "unseen people"
    use = f"and {virtual} virtual ones to learn from" if run.config.distill.trains else "to calibrate int8 files by"
    return {
        "summary": f"{len(train)} faces of {len(train.names)} people {use}, {len(test)} of "
        f"{len(test.names)} {people} to test on; {sum(skipped.values())} skipped, "
        f"{len(missed)} without a face found",
        "public": {
            "name": public.source,
            "faces": len(public),
            "identities": len(public.names),
            "unlabelled": int((public.identities < 0).sum()),
            "licence": public.licence,
        },
        "split": {
            "train_faces": len(train),
            "train_identities": len(train.names),
            "virtual_faces": virtual,
            "test_faces": len(test),
            "test_identities": len(test.names),
            "leaks": len(leaks),
        },
        "skipped": skipped,
        "landmark_misses": list(missed),
        "test_name": data.val or public.source,
    }


def virtual_count(config: Config) -> int:
    """How many virtual faces are added: none where nothing learns from them."""
    return config.data.virtual if config.distill.trains else 0


def load_parts(run: Run) -> tuple[Faces, Faces]:
    """(train with the virtual faces at its end, test) of an ended data stage."""
    return Faces.load(run.path(TRAIN)), Faces.load(run.path(TEST))


def test_pairs(test: Faces, config: Config, seed: int) -> Pairs:
    """The fixed pairs of `data.pairs`, else balanced ones drawn from the test people."""
    if config.data.pairs is not None:
        pairs = verification.read_pairs(Path(config.data.pairs), test.keys)
        known = (test.identities[pairs.a] >= 0) & (test.identities[pairs.b] >= 0)
        if not (known & ~pairs.same).any():
            raise UserError(
                f"{config.data.pairs} compares no two people of whom --val has two faces or more each: the rate of "
                "false matches cannot be measured; give pairs of more people"
            )
        return pairs
    return verification.make_pairs(test.identities, seed, config.evaluate.most, config.evaluate.folds)


def _open(run: Run, spec: str) -> Faces:
    recognise(spec)
    with run.progress(f"reading {spec}", total=None) as advance:
        faces = open_faces(spec, detector=run.config.data.detector, aligned=run.config.data.aligned, progress=advance)
    for reason, count in faces.integrity.skipped.items():
        run.log.info("%s: %d x %s", spec, count, reason)
    for key in faces.integrity.missed:
        run.log.info("%s: no face found in %s", spec, key)
    for warning in faces.integrity.warnings:
        run.say(f"note       {spec}: {warning}")
    return faces
