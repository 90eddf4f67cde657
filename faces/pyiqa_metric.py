"""No-reference metrics of pyiqa by name, with the user's weights file or pyiqa's own."""

import contextlib
import difflib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from faces.errors import UserError


def create_metric(
    name: str, weights: str | Path | None = None, lower_better: bool | None = None
) -> tuple[nn.Module, bool]:
    """(metric: (N, 3, H, W) RGB in [0, 1] to N scores, whether low scores are good) by pyiqa's name.

    weights: the metric's own file, which must hold plain tensors; else pyiqa fetches and reads its own. UserError:
    no pyiqa, no such no-reference metric, no weights, a polarity other than the one pyiqa declares.
    """
    try:
        # Its import and its downloads print, which would spoil a command's output.
        with contextlib.redirect_stdout(sys.stderr):
            import pyiqa
            from pyiqa.default_model_configs import DEFAULT_CONFIGS
    except ImportError:
        raise UserError(
            f"there is no file {name!r}, and metrics by name need a package: pip install 'bridgeface[quality]'"
        ) from None
    if DEFAULT_CONFIGS.get(name, {}).get("metric_mode") != "NR":
        known = [key for key, value in DEFAULT_CONFIGS.items() if value.get("metric_mode") == "NR"]
        near = difflib.get_close_matches(name, known, 1)
        raise UserError(
            f"there is no file {name!r} and no no-reference metric of that name in pyiqa"
            f"{f'; did you mean {near[0]}?' if near else ''} (cnniqa, brisque, niqe, ...)"
        )
    options: dict[str, Any] = {}
    if weights is not None:
        _refuse_code(Path(weights))
        options["pretrained_model_path"] = str(weights)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            metric = pyiqa.create_metric(name, device="cpu", **options)
    except OSError as problem:
        raise UserError(
            f"pyiqa cannot fetch the weights of {name} ({problem}); download them elsewhere and give the file, or fit "
            "a score of your own with python -m faces.quality fit"
        ) from None
    except (RuntimeError, LookupError, TypeError, ValueError) as problem:
        raise UserError(f"pyiqa cannot make {name} of {weights or 'its own weights'} ({problem})") from None
    declared = bool(metric.lower_better)
    if lower_better not in (None, declared):
        raise UserError(f"pyiqa says of {name} that {'low' if declared else 'high'} is good; leave lower_better out")
    return metric, declared


def _refuse_code(path: Path) -> None:
    """pyiqa unpickles what it is given: let only files through that hold plain tensors (a .mat holds no code)."""
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    if path.suffix == ".mat":
        return
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        # torch.load has no error of its own: a cut or foreign file raises about anything.
        raise UserError(f"{path} is no torch file of plain tensors ({type(problem).__name__})") from problem
