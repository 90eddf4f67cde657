"""PETALface's alpha for a teacher: a quality score, its map and its threshold, fitted on the training faces."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from faces import quality
from faces.align import crop
from faces.cnniqa import CNNIQA, PATCH_PX
from faces.cnniqa_fit import fit_cnniqa
from faces.dataset import Faces
from faces.distributed import rank
from faces.errors import UserError
from faces.files import fingerprint, write_json
from faces.pyiqa_metric import create_metric
from faces.quality import Alpha, Quality
from teachers import augment
from teachers.settings import Finetune

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from teachers.teacher import Teacher

ALPHA = "alpha.json"
_SAMPLE, _LARGEST_FIT = 512, 4000


def prepare_alpha(teacher: "Teacher", faces: Faces, how: Finetune, seed: int, folder: Path, fabric: "Fabric") -> Alpha:
    """What gives an image its alpha, on the fabric's device; kept in FOLDER/quality-KEY.safetensors for a resume.

    `how.quality` is `fitted` (a CNN-IQA fitted here, `how.quality_steps` steps), a pyiqa metric or a file of
    `faces.quality`. t = mu + sigma over a sample of the training faces in the mix of resolutions that training
    shows (Algorithm 1). One process fits, all read. FOLDER/alpha.json tells t, alpha's 5%, 50% and 95% points at full
    size and at 16 px, and how well a fitted score sees resolution in people that it was not fitted on.
    """
    made = [how.quality, how.quality_steps, seed, faces.state(), teacher.template, teacher.input_px]
    given = Path(how.quality)
    file = folder / f"quality-{fingerprint(made, [given] if given.is_file() else [])}.safetensors"
    if rank() == 0 and not file.is_file():
        score, report = _fit(teacher, faces, how, seed)
        quality.save(score, file, report)
    fabric.barrier()
    score, crops = quality.create_quality(file), _crops(teacher, faces, seed, _SAMPLE)
    alpha = Alpha(score, quality.threshold(score.of(_mixed(crops, how, seed))))
    if rank() == 0:
        told = {
            "t": float(alpha.t),
            "percentiles_5_50_95": quality.alpha_percentiles(alpha, crops),
            "score": quality.read_report(file)["report"],
        }
        write_json(folder / ALPHA, told)
    return alpha.to(fabric.device)


def _fit(teacher: "Teacher", faces: Faces, how: Finetune, seed: int) -> tuple[Quality, dict[str, Any]]:
    report: dict[str, Any] = {}
    if how.quality == "fitted":
        if teacher.input_px < PATCH_PX:
            raise UserError(
                f"the fitted quality score needs {PATCH_PX} px, and {teacher.name} takes {teacher.input_px}: "
                "give another score with the setting quality"
            )
        chosen = faces.subset(np.random.default_rng([seed, 14]).permutation(len(faces))[:_LARGEST_FIT])
        crops = crop(chosen.images, chosen.landmarks, "arcface")
        network, report = fit_cnniqa(crops, chosen.identities, seed, steps=how.quality_steps)
        # The published, non-overlapping patches: a score takes a third less time.
        network.stride = PATCH_PX
        score = Quality(network, "fitted CNN-IQA", lower_better=False)
    else:
        score = quality.create_quality(how.quality)
    report["map"] = quality.fit_map(score, _crops(teacher, faces, seed, _SAMPLE), seed)
    return score, report


def _crops(teacher: "Teacher", faces: Faces, seed: int, count: int) -> np.ndarray:
    chosen = faces.subset(np.random.default_rng([seed, 15]).permutation(len(faces))[:count])
    return crop(chosen.images, chosen.landmarks, teacher.template, teacher.input_px)


def _mixed(crops: np.ndarray, how: Finetune, seed: int) -> np.ndarray:
    """The crops at the resolutions that training shows them."""
    draws = augment.keyed_draws(seed, 0, np.arange(len(crops)), stream=1)
    px = augment.random_px(draws, how.low_share, *how.low_px, crops.shape[1])
    return augment.low_resolution_crops(crops, px)


def alpha_notes(alpha: Alpha) -> dict[str, Any]:
    """What rebuilds the module of an alpha around its tensors."""
    score = alpha.quality
    notes = {"name": score.name, "lower_better": score.lower_better}
    if isinstance(score.scorer, CNNIQA):
        notes |= {"stride": score.scorer.stride, "constant": score.scorer.constant}
    return notes


def alpha_state(alpha: Alpha) -> dict[str, Tensor]:
    """The tensors of an alpha, its counters at zero; of a pyiqa metric its map alone, as its weights are pyiqa's."""
    own = isinstance(alpha.quality.scorer, CNNIQA)
    state = {name: value for name, value in alpha.state_dict().items() if own or "scorer." not in name}
    return state | {name: torch.zeros_like(state[name]) for name in ("seen", "clamped")}


def alpha_from(notes: dict[str, Any], state: dict[str, Tensor], path: str | Path) -> Alpha:
    """The alpha that `alpha_notes` and `alpha_state` describe; UserError where they do not fit."""
    try:
        own = "stride" in notes
        scorer = CNNIQA(notes["stride"], notes["constant"]) if own else create_metric(notes["name"])[0]
        alpha = Alpha(Quality(scorer, notes["name"], notes["lower_better"]), 0.0)
        wanted = alpha_state(alpha)
        if wanted.keys() != state.keys() or not all(value.isfinite().all() for value in state.values()):
            raise ValueError("tensors are missing, too many or not finite")
        alpha.load_state_dict(state, strict=own)
    except (LookupError, TypeError, ValueError, RuntimeError) as problem:
        raise UserError(f"{path}: what gives the images' alpha is damaged ({problem})") from None
    return alpha.eval()
