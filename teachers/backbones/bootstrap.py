"""The backbone of a bootstrap teacher: a random Swin and a small linear layer, fitted in closed form."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from faces.errors import UserError
from faces.files import whole
from teachers.backbones import Backbone
from teachers.backbones.swin import Swin
from teachers.lora import OFFICIAL_TARGETS

_FORMAT = "bridgeface-bootstrap-1"


class Bootstrap(Backbone):
    """A random Swin (frozen, bfloat16 values) and a linear layer to 128, float32; compare by the cosine.

    It computes in bfloat16 where the processor does so fast, else in float32: without such instructions a CPU is
    several times slower in bfloat16. The random weights depend on `seed` alone; `options` go to `Swin`. `forward`
    raises UserError until the linear layer is fitted.
    """

    def __init__(self, seed: int = 0, **options: Any) -> None:
        super().__init__()
        self.lora_targets = OFFICIAL_TARGETS | {"single": r"^head$"}
        self.seed, self.options = seed, options
        self.net = random_swin(seed, **options)
        self.net.to(torch.bfloat16 if fast_bfloat16() else torch.float32)
        self.head = nn.Linear(self.net.features_dim, 128)
        self.input_px, self.embedding_dim = self.net.input_px, 128
        self.fitted = False

    @property
    def precision(self) -> torch.dtype:
        """Of the random weights, and so of the arithmetic."""
        return next(self.net.parameters()).dtype

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, p, p) in [0, 1] to (N, features)."""
        return self.net.features(x.to(self.precision))

    def forward(self, x: Tensor) -> Tensor:
        if not self.fitted:
            raise UserError("this bootstrap teacher is not fitted yet: fit_bootstrap(teacher, faces, reference)")
        return self.head(self.features(x).to(self.head.weight.dtype))

    def fingerprint(self) -> str:
        """SHA-256 over the random weights: equal seeds give equal ones only with the same generator."""
        digest = hashlib.sha256()
        for parameter in self.net.parameters():
            values = parameter.detach().cpu().to(torch.bfloat16).contiguous()
            digest.update(values.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the linear layer, and what the random rest is made from, as safetensors (20 MB)."""
        notes = {
            "format": _FORMAT,
            "seed": str(self.seed),
            "options": json.dumps(self.options),
            "sha256": self.fingerprint(),
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        with whole(path) as temporary:
            save_file(tensors, temporary, notes)

    @classmethod
    def from_file(cls, path: str | Path) -> "Bootstrap":
        """The fitted bootstrap that `save` wrote; UserError where it is damaged or cannot be rebuilt."""
        try:
            with safe_open(path, "pt") as file:
                notes = file.metadata()
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            bootstrap = cls(int(notes["seed"]), **json.loads(notes["options"]))
            bootstrap.head.load_state_dict(state)
        except (SafetensorError, OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is no bootstrap teacher, or it is damaged ({error})") from error
        if bootstrap.fingerprint() != notes["sha256"]:
            raise UserError(f"{path} was fitted to other random weights than this PyTorch draws: fit it anew")
        bootstrap.fitted = True
        return bootstrap


def is_bootstrap(path: str | Path) -> bool:
    """Is this a file that `Bootstrap.save` wrote?"""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except (SafetensorError, OSError):
        return False


def fast_bfloat16() -> bool:
    """Has this processor instructions for bfloat16 (AMX or AVX-512 BF16)? True where it cannot be told."""
    asked = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    return any(one is None or one() for one in asked)


def random_swin(seed: int, **options: Any) -> Swin:
    """A frozen bfloat16 Swin without its projection: weights N(0, .02²) by `seed`, biases 0, norms 1."""
    net = Swin(projection=False, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return net.to(torch.bfloat16).requires_grad_(False).eval()
