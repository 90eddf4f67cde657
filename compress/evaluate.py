"""Stage evaluate: teacher, student and artifacts on the same pairs of unseen people, protocol by protocol."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import export
from compress import strip, teach
from compress.adapt import load_adapter
from compress.artifacts import runnable
from compress.config import Config
from compress.data import load_parts, test_pairs
from compress.distill import REFERENCE_STUDENT, has_reference, load_student
from compress.run import Run
from export.kit import student_crops
from export.stage import reference_embeddings
from faces import verification
from faces.dataset import Faces
from faces.intervals import Interval, pair_interval, rank_interval, roc_intervals
from faces.threads import cores, threads
from faces.verification import FARS, Pairs, Roc

Embed = Callable[[int | None], np.ndarray]
"""Resolution in px (None = full size) -> embeddings (N, D) of the test faces at it."""


def settings(config: Config) -> Any:
    return [config.evaluate, config.data.pairs, config.seed]


def run(run: Run) -> dict[str, Any]:
    """Accuracy rows of every model, and strip.npz for the report."""
    _, test = load_parts(run)
    how = run.config.evaluate
    pairs = test_pairs(test, run.config, run.config.seed)
    data = {"data": run.facts("data")["test_name"], "split": "test"}
    student = load_student(run)
    input_px = student.input_px

    def embed_student(px: int | None) -> np.ndarray:
        return reference_embeddings(student, student_crops(test, px, input_px))

    teacher = teach.load_teacher(run)
    sizes = tuple(sorted({*how.px, input_px}, reverse=True))
    levels = (None, *sizes)
    with run.progress(f"{teacher.name} on unseen people", len(test) * len(levels)) as advance, threads(cores()):
        embeddings = {px: teacher.embed_faces(test, px, progress=advance) for px in levels}
    rows = list(protocol_rows("teacher", embeddings.__getitem__, teacher.metric, test, pairs, sizes))
    rows += protocol_rows("student", embed_student, "cosine", test, pairs, sizes)
    if run.facts("distill")["mode"] in ("s", "sc"):
        rows += _shared_space(run, embeddings[None], embed_student, test, pairs, sizes)
    for artifact in runnable(run.facts("export")["artifacts"]):
        loaded = export.load(run.path(artifact["path"]))
        found = loaded.embed(student_crops(test, input_px, input_px))
        rows.append(row(artifact["path"], f"same@{input_px}", found, found, "cosine", test, pairs))
    reference = []
    if has_reference(run):
        other = load_student(run, REFERENCE_STUDENT)
        reference = [
            {**one, **data, "source": f"the same recipe with {teach.REFERENCE} as its teacher"}
            for one in protocol_rows(
                f"{run.config.distill.student} from {teach.REFERENCE}",
                lambda px: reference_embeddings(other, student_crops(test, px, input_px)),
                "cosine", test, pairs, sizes,
            )
        ]  # fmt: skip
    strip.write(run.path("strip.npz"), test, pairs, embed_student, (112, 32, 16, 8))
    protocol = f"same@{input_px}"
    headline = {one["model"]: one for one in rows if one["protocol"] == protocol}
    parts = [
        f"{model} {one['accuracy']:.1f}% [{one['ci95'][0]:.1f}, {one['ci95'][1]:.1f}]"
        for model, one in headline.items()
        if model in ("teacher", "student")
    ]
    people = "people who are not all strangers" if run.facts("data")["split"]["leaks"] else "unseen people"
    return {
        "summary": f"{protocol} on {len(pairs.same)} pairs of {people}: {', '.join(parts)}",
        "accuracy": [{**one, **data} for one in rows],
        "reference": reference,
    }


def protocol_rows(
    model: str, embed: Embed, metric: str, test: Faces, pairs: Pairs, sizes: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Rows `full`, and `same@p` and `cross@p` for each size."""
    full = embed(None)
    yield row(model, "full", full, full, metric, test, pairs)
    for px in sizes:
        low = embed(px)
        yield row(model, f"same@{px}", low, low, metric, test, pairs)
        yield row(model, f"cross@{px}", full, low, metric, test, pairs)


def row(
    model: str, protocol: str, first: np.ndarray, second: np.ndarray, metric: str, test: Faces, pairs: Pairs
) -> dict[str, Any]:
    """One accuracy row of results.json. first, second: (N, D), the test faces as first and as second image."""
    scores = verification.similarity(first[pairs.a], second[pairs.b], metric)
    correct = verification.correct_by_fold(scores, pairs)
    every = verification.all_pairs(first, second, test.identities, metric)
    roc, spread = Roc.of(every), roc_intervals(every, FARS)
    found, people = verification.rank1(first, second, test.identities, metric)
    fmr, tmr = roc.curve()
    by_fold = [correct[pairs.fold == fold].mean() for fold in range(pairs.folds)]
    return {
        "model": model,
        "protocol": protocol,
        "accuracy": _percent(float(correct.mean())),
        "ci95": _ends(pair_interval(correct, pairs, test.identities)),
        "pairs": len(scores),
        "folds": pairs.folds,
        "rank1": _percent(found.mean()),
        "rank1_ci95": _ends(rank_interval(found, people)),
        "tar_at_far": {_rate(far): None if (tar := roc.tar_at(far)) is None else _percent(tar) for far in FARS},
        "tar_ci95": {_rate(far): _ends(ends) for far, ends in spread.tar.items()},
        "eer": _percent(roc.eer()),
        "eer_ci95": _ends(spread.eer),
        "std_folds": _percent(float(np.std(by_fold))),
        "roc": {"fmr": fmr, "tmr": tmr},
    }


def _shared_space(
    run: Run, teacher_full: np.ndarray, embed: Embed, test: Faces, pairs: Pairs, sizes: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """cross@p with the gallery embedded by the adapted teacher at full size: the student shares its space."""
    gallery = load_adapter(run).targets(teacher_full)
    for px in sizes:
        yield row(
            "student, gallery by the adapted teacher",
            f"cross@{px}",
            gallery,
            embed(px),
            "cosine",
            test,
            pairs,
        )


def _percent(share: float) -> float:
    return round(100 * share, 4)


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [_percent(end) for end in interval]


def _rate(far: float) -> str:
    return f"1e-{round(-np.log10(far))}"
