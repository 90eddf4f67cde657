"""A CNN-IQA where no weights can be had: fitted to faces whose degradation is known, in minutes on a CPU."""

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faces.cnniqa import CNNIQA, PATCH_PX, grey, local_normalise
from faces.dataset import Progress
from faces.degrade import jpeg, resize
from faces.errors import UserError

FIT_PX = 112
LOWEST_PX = 6
_BATCH, _PATCHES = 48, 4
STEPS = 800
_KERNELS = [(down, up) for down in ("bicubic", "bilinear", "area", "aliased") for up in ("bicubic", "bilinear")]
_SIGMAS = torch.linspace(0, 4, 65)
_LONGEST = 21.0


@dataclass(frozen=True)
class Damage:
    """What was done to B faces of 112 px, each (B,) float.

    px: resolution, 6 to 112; kernel: index of the pair of resize kernels; sigma: Gaussian blur in pixels of the 112;
    quality: JPEG's, 100 = none; gain, bias: contrast and brightness, 1 and 0 = none; motion: length in pixels and
    angle of a motion blur, 0 = none, which no training face has.
    """

    px: Tensor
    kernel: Tensor
    sigma: Tensor
    quality: Tensor
    gain: Tensor
    bias: Tensor
    motion: Tensor
    angle: Tensor

    @classmethod
    def none(cls, count: int) -> "Damage":
        zero = torch.zeros(count)
        return cls(zero + FIT_PX, zero.long(), zero, zero + 100, zero + 1, zero, zero, zero)

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> "Damage":
        """Resolution log-uniform in 6..112 for seven faces of ten; then each other kind with its own chance."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=generator)

        def chance(share: float) -> Tensor:
            return torch.rand(count, generator=generator) < share

        px = torch.exp(uniform(math.log(LOWEST_PX - 0.5), math.log(FIT_PX + 0.5))).round().clamp(LOWEST_PX, FIT_PX)
        light = chance(0.3)
        zero = torch.zeros(count)
        return cls(
            px=torch.where(chance(0.7), px, float(FIT_PX)),
            kernel=torch.randint(len(_KERNELS), (count,), generator=generator),
            sigma=torch.where(chance(0.25), uniform(0, 1) ** 2 * 4, 0.0),
            quality=torch.where(chance(0.25), uniform(10, 95), 100.0),
            gain=torch.where(light, uniform(0.4, 1.4), 1.0),
            bias=torch.where(light, uniform(-0.15, 0.15), 0.0),
            motion=zero,
            angle=zero,
        )

    def target(self) -> Tensor:
        """The quality that is fitted, (B,) in [0, 1].

        log(e / 6) / log(112 / 6) * (1 - .2 (1 - quality / 100)) * (1 - .1 light): e is the effective resolution with
        1 / e^2 = 1 / px^2 + (sigma / 42)^2, cut to 6..112, as a blur of sigma halves the contrast of 112 px at the
        Nyquist frequency of 42 / sigma px; light = |log2 gain| + 4 |bias|, at most 1. So resolution takes the whole
        range, JPEG at most .2 and light at most .1 of what is left.
        """
        effective = (1 / self.px**2 + (self.sigma / 42) ** 2).rsqrt().clamp(LOWEST_PX, FIT_PX)
        light = (self.gain.log2().abs() + 4 * self.bias.abs()).clamp(max=1)
        sharp = torch.log(effective / LOWEST_PX) / math.log(FIT_PX / LOWEST_PX)
        return sharp * (1 - 0.2 * (1 - self.quality / 100)) * (1 - 0.1 * light)

    def apply(self, x: Tensor) -> Tensor:
        """The damaged (B, 1, 112, 112) faces of grey ones in [0, 1], on the grid of 8 bits: motion, blur, resolution,
        light, JPEG."""
        if self.motion.any():
            x = _motion(x, self.motion, self.angle)
        weights = _resolutions()[self.kernel, self.px.long() - LOWEST_PX]
        weights = weights @ _blurs()[(self.sigma / (_SIGMAS[1] - _SIGMAS[0])).round().long()]
        x = (weights[:, None] @ x @ weights[:, None].mT).clamp(0, 1)
        x = (x * self.gain[:, None, None, None] + self.bias[:, None, None, None]).clamp(0, 1)
        coded = (self.quality < 100).nonzero()[:, 0]
        x = x.index_copy(0, coded, jpeg(x[coded].expand(-1, 3, -1, -1), self.quality[coded])[:, :1])
        return (x * 255).round() / 255


def fit_cnniqa(
    crops: np.ndarray,
    identities: np.ndarray,
    seed: int,
    *,
    steps: int = STEPS,
    seconds: float | None = None,
    progress: Progress | None = None,
    planned: Progress | None = None,
) -> tuple[CNNIQA, dict[str, Any]]:
    """(network whose score is higher for a better face, report).

    crops: (N, S, S, 3) uint8 RGB ArcFace crops; identities: (N,), -1 = a person of its own. A tenth of the people is
    held out for the report: Spearman's rank correlation of the score with the true strength of each kind of damage,
    signed so that 1 is perfect; motion blur is never trained on. The same arguments give the same network on the same
    machine and thread count. `seconds` sets `steps` by the clock: the report says to how many. `progress` gets the
    number of steps just done, `planned` at the start their total. UserError: faces of fewer than 20 people.
    """
    train, held_out = _split(identities, seed)
    faces = _grey(crops, train)
    sharp = _sharper_half(faces)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(seed, 0))
        network = CNNIQA(constant=10 / 255)
        if seconds is not None:
            steps = _affordable(network, faces[sharp], seconds)
        if planned:
            planned(steps)
        started = time.monotonic()
        _train(network, faces[sharp], steps, seed, progress)
    report = {
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "faces": len(sharp),
        "held_out_faces": len(held_out),
        "held_out_kind": "motion blur",
        "spearman": correlations(network, crops[held_out], seed),
    }
    return network, report


@torch.no_grad()
def correlations(scorer: nn.Module, crops: np.ndarray, seed: int, sign: int = 1) -> dict[str, float]:
    """Spearman's rank correlation of a scorer of (N, 1, 112, 112) images with each kind of damage done to `crops`.

    1: the more damage, the lower the score; `sign` -1 for a scorer whose low scores are the good ones. Every crop is
    damaged once a kind, uniformly over its range: resolution (log-uniform, 6 to 112 px, bicubic), blur, JPEG quality,
    darkness (gain), length of a motion blur.
    """
    from scipy.stats import spearmanr

    x = _grey(crops, np.arange(len(crops)))
    generator = torch.Generator().manual_seed(_seed(seed, 1))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(x), generator=generator)

    strength = {
        "resolution": {"px": torch.exp(uniform(math.log(LOWEST_PX), math.log(FIT_PX))).round()},
        "blur": {"sigma": -uniform(0, 4)},
        "jpeg": {"quality": uniform(5, 95)},
        "light": {"gain": uniform(0.3, 1)},
        "motion blur": {"motion": -uniform(0, _LONGEST)},
    }
    found = {}
    for kind, values in strength.items():
        ((name, value),) = values.items()
        damage = {**vars(Damage.none(len(x))), "angle": uniform(0, math.pi), name: value.abs()}
        score = torch.cat([scorer(part) for part in _in_parts(Damage(**damage), x)])
        found[kind] = round(sign * float(spearmanr(score.numpy(), value.numpy()).statistic), 4)
    return found


def _in_parts(damage: Damage, x: Tensor) -> list[Tensor]:
    parts = zip(*(value.split(64) for value in vars(damage).values()), strict=True)
    return [Damage(*part).apply(faces) for part, faces in zip(parts, x.split(64), strict=True)]


def _split(identities: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) indices, people disjoint; who is not labelled is a person of its own."""
    people = np.where(identities >= 0, identities, -1 - np.arange(len(identities)))
    known = np.unique(people)
    if len(known) < 20:
        raise UserError(f"a quality score needs faces of at least 20 people to be fitted on, not {len(known)}")
    out = np.random.default_rng([seed, 606]).permutation(known)[: max(2, len(known) // 10)]
    is_out = np.isin(people, out)
    return np.flatnonzero(~is_out), np.flatnonzero(is_out)


def _grey(crops: np.ndarray, indices: np.ndarray) -> Tensor:
    """(N, 1, 112, 112) float32 in [0, 1]."""
    parts = [resize(crops[part], FIT_PX) for part in np.array_split(indices, math.ceil(len(indices) / 256))]
    return torch.cat([grey(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255) for part in parts])


def _sharper_half(x: Tensor) -> Tensor:
    """Indices of the half whose detail between 32 and 64 px goes on above 64 px: else "112 px" would be untrue.

    Many collections hold enlarged faces, which lose nothing when they are reduced to their true resolution.
    """
    bands = []
    for px in (64, 32):
        weights = _resolutions()[0, px - LOWEST_PX]
        bands.append(torch.cat([(part - weights @ part @ weights.mT).abs().mean((1, 2, 3)) for part in x.split(64)]))
    share = bands[0] / bands[1].clamp(min=1e-4)
    return share.argsort(descending=True, stable=True)[: max(1, len(x) // 2)].sort().values


def _train(network: CNNIQA, faces: Tensor, steps: int, seed: int, progress: Progress | None = None) -> None:
    """L1 between each patch's score and its face's target, as published; Adam, 1e-3 falling linearly."""
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(1, steps))
    generator = torch.Generator().manual_seed(_seed(seed, 2))
    network.train()
    for _ in range(steps):
        damage = Damage.draw(_BATCH, generator)
        chosen = torch.randint(len(faces), (_BATCH,), generator=generator)
        x = local_normalise(damage.apply(faces[chosen]), network.constant)
        corners = torch.randint(FIT_PX - PATCH_PX + 1, (2, _BATCH, _PATCHES), generator=generator)
        windows = x[:, 0].unfold(1, PATCH_PX, 1).unfold(2, PATCH_PX, 1)
        patches = windows[torch.arange(_BATCH)[:, None], corners[0], corners[1]].flatten(0, 1)[:, None]
        loss = F.l1_loss(network.patches(patches), damage.target().repeat_interleave(_PATCHES))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress:
            progress(1)
    network.eval()


def _affordable(network: CNNIQA, faces: Tensor, seconds: float, probe: int = 10) -> int:
    """How many training steps fit into `seconds`, by the time of some steps of a copy."""
    trial = CNNIQA(network.stride, network.constant)
    _train(trial, faces, 2, 0)
    started = time.monotonic()
    _train(trial, faces, probe, 0)
    return max(1, int(seconds * probe / (time.monotonic() - started)))


@lru_cache(maxsize=1)
def _resolutions() -> Tensor:
    """(kernels, 107, 112, 112): matrices that reduce a side of 112 to 6..112 px and enlarge it again."""
    full = torch.eye(FIT_PX)[None, None]

    def scale(x: Tensor, px: int, mode: str) -> Tensor:
        if mode == "area":
            return F.interpolate(x, size=(px, FIT_PX), mode=mode)
        smooth = mode != "aliased"
        mode = mode if smooth else "bilinear"
        return F.interpolate(x, size=(px, FIT_PX), mode=mode, antialias=smooth, align_corners=False)

    table = torch.empty(len(_KERNELS), FIT_PX - LOWEST_PX + 1, FIT_PX, FIT_PX)
    for i, (down, up) in enumerate(_KERNELS):
        for px in range(LOWEST_PX, FIT_PX + 1):
            # Antialiased or not, torch's two bicubic kernels differ: enlarging takes the protocol's one.
            table[i, px - LOWEST_PX] = scale(scale(full, px, down), FIT_PX, up)[0, 0]
    return table


@lru_cache(maxsize=1)
def _blurs() -> Tensor:
    """(65, 112, 112): matrices that blur a side by each sigma of _SIGMAS; rows sum to 1 at the borders too."""
    place = torch.arange(FIT_PX, dtype=torch.float32)
    weights = torch.exp(-((place[:, None] - place) ** 2) / (2 * _SIGMAS[:, None, None].clamp(min=0.05) ** 2))
    return weights / weights.sum(2, keepdim=True)


def _motion(x: Tensor, length: Tensor, angle: Tensor) -> Tensor:
    """Each face averaged along a line of its own length in pixels and angle in radians; borders repeated."""
    reach = math.ceil(_LONGEST / 2) + 1
    y, right = torch.meshgrid(*[torch.arange(-reach, reach + 1, dtype=torch.float32)] * 2, indexing="ij")
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = (right * cos + y * sin).abs(), (y * cos - right * sin).abs()
    kernel = (1 - across).clamp(min=0) * (length[:, None, None] / 2 + 0.5 - along).clamp(0, 1)
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    padded = F.pad(x, [reach] * 4, mode="replicate")
    return F.conv2d(padded.transpose(0, 1), kernel[:, None], groups=len(x)).transpose(0, 1)


def _seed(seed: int, key: int) -> int:
    return int(np.random.SeedSequence([seed, 707, key]).generate_state(1, np.uint64)[0] >> np.uint64(1))
