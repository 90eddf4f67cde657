"""No-reference quality of a face in [0, 1], higher is better, and PETALface's per-image alpha made of it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from faces.cnniqa import CNNIQA, PATCH_PX, load_plain
from faces.degrade import reduce
from faces.errors import UserError
from faces.files import sha256, whole
from faces.pyiqa_metric import create_metric

LOW_PX = 16
_FORMAT = "bridgeface quality 1"
_ENDS = math.log(9)
"""The logistic map puts the median full-size face at .9 and the median 16 px face at .1: its logits there."""


class Quality(nn.Module):
    """A frozen metric and the monotone map of its unbounded score to [0, 1].

    q = sigmoid(slope * (s - centre)), s = the metric's score, negated where low is good. `fit_map` sets slope and
    centre; `side` is the side in px of the crops they were fitted on, and every image is brought to it first: a score
    depends on how much a face was enlarged. An image smaller than that thus counts as one of low resolution.
    weights_sha256: of the file that a pyiqa metric's weights came from; None where they are pyiqa's own.
    """

    centre: Tensor
    slope: Tensor
    side: Tensor

    def __init__(self, scorer: nn.Module, name: str, lower_better: bool, weights_sha256: str | None = None) -> None:
        super().__init__()
        self.scorer = scorer.eval().requires_grad_(False)
        self.name, self.lower_better, self.weights_sha256 = name, lower_better, weights_sha256
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("slope", torch.zeros(()))
        self.register_buffer("side", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> "Quality":
        """Stays in evaluation mode, whatever holds it: its dropout would make the score random."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(N,) float32 in [0, 1] of (N, 3, H, W) RGB in [0, 1]. UserError where no map was fitted."""
        if not self.slope > 0:
            raise UserError(f"the quality score {self.name} has no map to [0, 1] yet: fit it on faces with fit_map")
        return torch.sigmoid(self.slope * (self._score(x, int(self.side)) - self.centre))

    def _score(self, x: Tensor, side: int) -> Tensor:
        """(N,) scores at `side` px, 0 = as they are, higher is better. UserError where one is NaN or infinite."""
        x = x.float()
        # As they are, but no smaller than what the metrics take.
        size = (side, side) if side else tuple(max(PATCH_PX, length) for length in x.shape[2:])
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
        x = x.clamp(0, 1)
        score = self.scorer(x).float().flatten()
        if len(score) != len(x):
            raise UserError(f"the metric {self.name} gives {len(score)} scores for {len(x)} images; choose another one")
        if not score.isfinite().all():
            raise UserError(f"the metric {self.name} gives scores that are not finite on these images; choose another")
        return -score if self.lower_better else score

    @torch.no_grad()
    def scores(self, images: np.ndarray, side: int | None = None) -> Tensor:
        """(N,) scores before the map, higher is better, of (N, H, W, 3) uint8 crops, at the map's size if any."""
        side = side or int(self.side)
        parts = [images[start : start + 64] for start in range(0, len(images), 64)]
        return torch.cat([self._score(self._tensor(part), side) for part in parts])

    def of(self, images: np.ndarray) -> Tensor:
        """(N,) quality of (N, S, S, 3) uint8 crops, on the CPU."""
        parts = [images[start : start + 64] for start in range(0, len(images), 64)]
        return torch.cat([self(self._tensor(part)).cpu() for part in parts])

    def _tensor(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images)).to(self.slope.device).permute(0, 3, 1, 2).float() / 255


def fit_map(quality: Quality, images: np.ndarray, seed: int, sample: int = 256) -> dict[str, float]:
    """Set the map from (N, S, S, 3) uint8 RGB crops of training faces, and check the metric's polarity on them.

    The logistic has its .9 at the median score of `sample` of them as they are, its .1 at the median of the same ones
    reduced to 16 px. Returns both medians (raw scores, higher is better) and `separation`: the share of pairs (a
    full-size face, a 16 px face) in which the full one scores higher. UserError where that is not above .75: the
    metric does not see resolution, or its polarity is declared the wrong way round.
    """
    images = _sample(images, seed, sample)
    side = images.shape[1]
    full, low = quality.scores(images, side), quality.scores(reduce(images, LOW_PX, side), side)
    separation = float((full[:, None] > low).float().mean())
    if separation <= 0.75:
        wrong = "its polarity seems declared the wrong way round" if separation < 0.25 else "it does not see resolution"
        good = "low" if quality.lower_better else "high"
        raise UserError(
            f"the metric {quality.name} puts full-size faces above the same faces at {LOW_PX} px in only "
            f"{separation:.0%} of pairs, {good} scores taken as good: {wrong}"
        )
    top, bottom = full.median(), low.median()
    quality.centre.copy_((top + bottom) / 2)
    quality.slope.copy_(2 * _ENDS / (top - bottom))
    quality.side.fill_(side)
    return {"median_full": float(top), f"median_{LOW_PX}": float(bottom), "separation": separation}


def create_quality(spec: str | Path, weights: str | Path | None = None, lower_better: bool | None = None) -> Quality:
    """A quality score by name or file.

    spec: a file that `save` wrote (map included; `weights` only where it is the map of a pyiqa metric with weights of
    its own, and then the same file); a torch file of bare grey CNN-IQA weights, whose polarity the file does not tell,
    so that `lower_better` must; or the name of a no-reference pyiqa metric, whose polarity pyiqa declares. weights: the
    metric's own file (for CNN-IQA `{"params": state_dict}`), read without running code in it; else pyiqa downloads its
    own. Only the first kind has its map; the others need `fit_map`. UserError on all that does not fit.
    """
    path = Path(spec)
    if not path.is_file():
        metric, low = create_metric(str(spec), weights, lower_better)
        return Quality(metric, str(spec), low, None if weights is None else sha256(weights))
    if path.suffix == ".safetensors":
        return _load(path, weights, lower_better)
    _refuse_weights(path, weights)
    if lower_better is None:
        raise UserError(
            f"{path} does not say whether a low score is good: python -m faces.quality fit --metric FILE with "
            "--lower-better (DMOS weights such as LIVE's) or --higher-better (MOS weights) makes a file that does"
        )
    return Quality(load_plain(path), path.name, lower_better)


def save(quality: Quality, path: str | Path, report: dict[str, Any] | None = None) -> None:
    """Write the map and, of a CNN-IQA, the network as safetensors; of a pyiqa metric its name and the SHA-256
    of its weights' file."""
    if Path(path).suffix != ".safetensors":
        raise UserError(f"a quality score is written as .safetensors, not as {Path(path).name}")
    own = isinstance(quality.scorer, CNNIQA)
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in quality.state_dict().items()
        if own or not name.startswith("scorer.")
    }
    about = {"name": quality.name, "lower_better": quality.lower_better, "report": report or {}}
    if isinstance(quality.scorer, CNNIQA):
        about |= {"stride": quality.scorer.stride, "constant": quality.scorer.constant}
    else:
        about["weights_sha256"] = quality.weights_sha256
    with whole(path) as temporary:
        save_file(tensors, temporary, {"format": _FORMAT, "about": json.dumps(about)})


def read_report(path: str | Path) -> dict[str, Any]:
    """What `save` wrote beside the tensors: name, lower_better, report, stride and constant of a CNN-IQA, and
    `weights_sha256` of a pyiqa metric (None: pyiqa's own weights)."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        about = json.loads(metadata.get("about", "{}"))
    except (SafetensorError, ValueError, RecursionError) as problem:
        raise UserError(f"{path} is no quality score, or it is cut short ({problem})") from None
    if metadata.get("format") != _FORMAT or not isinstance(about, dict):
        raise UserError(f"{path} is no quality score of this program; make one with python -m faces.quality fit")
    return about


def _load(path: Path, weights: str | Path | None, wanted_polarity: bool | None) -> Quality:
    about = read_report(path)
    try:
        lower_better, name = bool(about["lower_better"]), str(about["name"])
        if wanted_polarity not in (None, lower_better):
            good = "low" if lower_better else "high"
            raise UserError(f"{path} says that {good} scores of {name} are good; leave lower_better out")
        own = "stride" in about
        if own:
            _refuse_weights(path, weights)
            scorer = CNNIQA(min(max(1, int(about["stride"])), 32), float(about["constant"]))
            quality = Quality(scorer, name, lower_better)
        else:
            digest = _check_weights(path, name, about, weights)
            quality = Quality(create_metric(name, weights, lower_better)[0], name, lower_better, digest)
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
        wanted = {key for key in quality.state_dict() if own or not key.startswith("scorer.")}
        if set(tensors) != wanted or not all(value.isfinite().all() for value in tensors.values()):
            raise ValueError("tensors are missing, too many or not finite")
        if not PATCH_PX <= int(tensors["side"]) <= 4096:
            raise ValueError("its side is out of range")
        quality.load_state_dict(tensors, strict=own)
    except (SafetensorError, LookupError, TypeError, ValueError, OverflowError, RuntimeError) as problem:
        raise UserError(f"{path} is damaged ({problem}); make it again with python -m faces.quality fit") from None
    return quality


def _refuse_weights(path: Path, weights: str | Path | None) -> None:
    if weights is not None:
        raise UserError(f"{path} holds its weights: leave out {weights}, which only a pyiqa metric takes")


def _check_weights(path: Path, name: str, about: dict[str, Any], weights: str | Path | None) -> str | None:
    """SHA-256 of `weights`; UserError where the map in `path` was fitted to others."""
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"no weights file {weights}")
    digest = None if weights is None else sha256(weights)
    # Older files do not tell.
    known = about.get("weights_sha256", digest)
    if known is None and weights is not None:
        raise UserError(f"{path} is the map of {name} with pyiqa's own weights: leave out {weights}")
    if known != digest:
        given = "none was given" if weights is None else f"{weights} is another one"
        raise UserError(
            f"{path} is the map of {name} with the weights file of SHA-256 {str(known)[:12]}, and {given}: give that "
            "file (python -m faces.quality score --weights FILE)"
        )
    return digest


def _sample(images: np.ndarray, seed: int, count: int) -> np.ndarray:
    if len(images) == 0:
        raise UserError("a quality score needs at least one face to be fitted on")
    chosen = np.random.default_rng([seed, 808]).permutation(len(images))[:count]
    return images[np.sort(chosen)]


def threshold(q: Tensor) -> float:
    """PETALface's t = mu + sigma of the quality over a sample of the data set (Algorithm 1)."""
    return float(q.double().mean() + q.double().std(correction=0))


def alpha(q: Tensor, t: float | Tensor) -> Tensor:
    """PETALface's weight of the high-quality branch, .5 + (q - t), cut to [0, 1] (the paper leaves it uncut)."""
    return (0.5 + (q - t)).clamp(0, 1)


class Alpha(nn.Module):
    """Per-image alpha: (N, 3, H, W) RGB in [0, 1] to (N,) float32 in [0, 1]; counts how often the cut acted."""

    t: Tensor
    clamped: Tensor
    seen: Tensor

    def __init__(self, quality: Quality, t: float) -> None:
        super().__init__()
        self.quality = quality
        self.register_buffer("t", torch.tensor(t, dtype=torch.float32))
        self.register_buffer("clamped", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @classmethod
    def of(cls, quality: Quality, images: np.ndarray, seed: int, sample: int = 1024) -> "Alpha":
        """With t from a sample of a data set's (N, S, S, 3) uint8 crops, in the state in which they will be seen."""
        return cls(quality, threshold(quality.of(_sample(images, seed, sample))))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        q = self.quality(x)
        self.clamped += ((q - self.t).abs() > 0.5).sum()
        self.seen += len(q)
        return alpha(q, self.t)

    def describe(self) -> dict[str, Any]:
        """Quality's name, t, images seen, and the share of them at which the cut acted (None before the first)."""
        seen = int(self.seen)
        share = int(self.clamped) / seen if seen else None
        return {"quality": self.quality.name, "t": float(self.t), "seen": seen, "clamped": share}


def alpha_percentiles(module: Alpha, crops: np.ndarray) -> dict[str, list[float]]:
    """5, 50 and 95 % of alpha over (N, S, S, 3) uint8 crops: `full`, and `16` of the same reduced to 16 px.

    The counters stay as they are.
    """
    versions = {"full": crops, str(LOW_PX): reduce(crops, LOW_PX, crops.shape[1])}
    return {
        name: np.percentile(alpha(module.quality.of(images), module.t.cpu()).numpy(), [5, 50, 95]).round(4).tolist()
        for name, images in versions.items()
    }


if __name__ == "__main__":
    from faces.quality_cli import main

    main()
