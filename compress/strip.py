"""Example faces of the report: pairs at every resolution with what the student says of them."""

import base64
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from faces.align import crop
from faces.dataset import Faces
from faces.degrade import resize
from faces.files import whole
from faces.verification import Pairs, best_threshold, similarity

# Pairs that are shown: what a reader can take in.
_PAIRS = 12


def read(path: Path) -> dict[str, Any]:
    """Example pairs by resolution with the student's decisions, from strip.npz.

    Its arrays, for K pairs at R widths: `names` str (K,), `same` bool (K,), `px` int (R,), `shown` uint8
    (K, 2, R, h, w, 3) RGB, `score` float (K, R) cosine, `threshold` float (R,), `decision` bool (K, R), true
    = "same person". A strip that cannot be read is told on the page, it does not stop the report.
    """
    if not path.is_file():
        return {"missing": "No example faces were stored."}
    try:
        with np.load(path, allow_pickle=False) as file:
            names, same, px, shown, score, threshold, decision = (
                file[key] for key in ("names", "same", "px", "shown", "score", "threshold", "decision")
            )
        pairs, widths = len(names), len(px)
        shapes = (same.shape, shown.shape[:3], score.shape, threshold.shape, decision.shape)
        if shapes != ((pairs,), (pairs, 2, widths), (pairs, widths), (widths,), (pairs, widths)):
            raise ValueError(f"its shapes do not fit each other: {shapes}")
        if not pairs or not widths:
            raise ValueError("it holds no pair")
        if shown.dtype != np.uint8 or shown.ndim != 6 or shown.shape[5] != 3:
            raise ValueError(f"shown is {shown.dtype} {shown.shape}")
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        return {"missing": f"strip.npz could not be read: {error}"}
    made = [
        {
            "name": str(names[k]),
            "same": bool(same[k]),
            "cells": [
                {
                    "px": int(px[r]),
                    "images": [_data_uri(shown[k, side, r]) for side in (0, 1)],
                    "score": float(score[k, r]),
                    "threshold": float(threshold[r]),
                    "said_same": bool(decision[k, r]),
                    "right": bool(decision[k, r] == same[k]),
                }
                for r in range(widths)
            ],
        }
        for k in range(min(pairs, _PAIRS))
    ]
    tally = [(int(px[r]), int((decision[:, r] == same).sum())) for r in range(widths)]
    return {"pairs": made, "tally": tally, "all": pairs, "left_out": pairs - len(made)}


def _data_uri(image: np.ndarray) -> str:
    """uint8 (h, w, 3) RGB as a PNG data: URI, one channel where the image is grey."""
    grey = (image == image[..., :1]).all()
    done, png = cv2.imencode(".png", image[..., 0] if grey else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"no PNG of an image of shape {image.shape}")
    return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()


def write(
    path: Path, test: Faces, pairs: Pairs, embed: Callable[[int | None], np.ndarray], widths: Sequence[int]
) -> None:
    """Store up to six genuine and six impostor pairs, chosen evenly, at each width with the decisions on them.

    embed: resolution in px -> embeddings (N, D) of the test faces, compared by the cosine. The threshold of a
    width is the best one on all pairs at it, so that the strip shows what the accuracy tables count.
    """
    chosen = np.concatenate([_evenly(np.flatnonzero(pairs.same == same)) for same in (True, False)])
    a, b = pairs.a[chosen], pairs.b[chosen]
    faces = np.unique([a, b])
    crops = crop(test.images[faces], test.landmarks[faces], "arcface")
    rows = np.searchsorted(faces, np.stack([a, b], 1))
    shown, scores, thresholds = [], [], []
    for px in widths:
        embedding = embed(px)
        everything = similarity(embedding[pairs.a], embedding[pairs.b], "cosine")
        thresholds.append(best_threshold(everything, pairs.same))
        scores.append(everything[chosen])
        size = crops.shape[1]
        small = resize(crops, px)
        shown.append(np.stack([cv2.resize(s, (size, size), interpolation=cv2.INTER_NEAREST) for s in small])[rows])
    score, threshold = np.stack(scores, 1), np.array(thresholds)
    with whole(path) as temporary:
        np.savez_compressed(
            temporary.open("wb"),
            names=np.array([f"{test.keys[i]} and {test.keys[j]}" for i, j in zip(a, b, strict=True)]),
            same=pairs.same[chosen],
            px=np.array(widths),
            shown=np.stack(shown, 2),
            score=score,
            threshold=threshold,
            decision=score >= threshold,
        )


def _evenly(among: np.ndarray) -> np.ndarray:
    return among[np.linspace(0, len(among) - 1, min(_PAIRS // 2, len(among))).round().astype(int)]
