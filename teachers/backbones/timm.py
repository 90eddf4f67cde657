"""Any model of timm as a face embedder: `timm:NAME`."""

import difflib
from typing import Any

from torch import Tensor, nn

from faces.errors import UserError
from teachers.backbones import Backbone
from teachers.weights import load_state


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError("timm models need a package: pip install 'bridgeface[timm]'") from None
    return timm


def check_model(model: str) -> None:
    """UserError where timm knows no model of this name; nothing is downloaded."""
    timm = _timm()
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"timm {timm.__version__} knows no model {model!r}{hint} (timm.list_models() names all)")


class Timm(Backbone):
    """RGB in [0, 1], shape (N, 3, px, px), to the model's pooled features (N, D), without its classifier.

    px: the size that timm states for the model, unless given. The model's mean and std are applied inside.
    pretrained: download timm's weights; else the initial ones are random. Raises UserError on an unknown name,
    a size that the model cannot have, or weights that cannot be fetched.
    """

    def __init__(self, model: str, px: int | None = None, pretrained: bool = False, **options: Any) -> None:
        super().__init__()
        timm = _timm()
        check_model(model)
        try:
            stated = timm.get_pretrained_cfg(model)
            if px is not None and stated is not None and stated.fixed_input_size:
                options["img_size"] = px
            self.net: nn.Module = timm.create_model(model, pretrained=pretrained, num_classes=0, **options)
        # The hub's client, timm and torch each raise errors of their own.
        except Exception as problem:
            reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            what = "timm's weights of" if pretrained else "the timm model"
            raise UserError(f"cannot get {what} {model} ({reason})") from problem
        config: dict[str, Any] = self.net.pretrained_cfg
        channels, side = config["input_size"][:2]
        if channels != 3:
            raise UserError(f"timm's {model} takes {channels} channels; a face has 3")
        self.input_px = px or side
        # Some heads project the features before the classifier.
        self.embedding_dim = int(getattr(self.net, "head_hidden_size", None) or self.net.num_features)
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.licence = str(config.get("license") or "not stated")
        named = config.get("classifier") or ()
        self.classifiers = (named,) if isinstance(named, str) else tuple(named)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return self.net((x - mean) / std)

    def load(self, state: dict[str, Tensor], path: str) -> None:
        """Copy a state dict of this class or of the timm model itself, whose classifier is left out."""
        if all(name.startswith("net.") for name in state):
            state = {name.removeprefix("net."): value for name, value in state.items()}
        heads = tuple(f"{name}." for name in self.classifiers)
        wanted = self.net.state_dict()
        state = {name: value for name, value in state.items() if name in wanted or not name.startswith(heads)}
        load_state(self.net, state, path)
