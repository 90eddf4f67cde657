"""Stage adapt: step 1, cross-dataset distillation (bridge distillation, eqs. 1-3).

The teacher's feature goes through an adaptation module (fully connected, 512 and 128 units) that learns to
recognise the public identities (eq. 2) and to mimic the softened softmax of the teacher's own classification
layer re-fitted on them (eq. 3). Its 128-d output is what the student will mimic, computed once a face.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from compress import teach
from compress.config import Adapt, Config
from compress.data import load_parts
from compress.run import Run
from faces.files import whole
from students.losses import relational
from students.tiny import EMBEDDING_DIM

TARGETS, REFERENCE_TARGETS = "work/targets.npy", "work/reference_targets.npy"


class Adapter(nn.Module):
    """Teacher features (N, D) to adapted features (N, 128); the input is standardised by the public set."""

    mean: Tensor
    scale: Tensor
    centre: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("centre", torch.zeros(EMBEDDING_DIM))
        self.fc1 = nn.Linear(width, 512)
        self.fc2 = nn.Linear(512, EMBEDDING_DIM)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def standardise(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.standardise(features))))

    @torch.no_grad()
    def targets(self, features: np.ndarray) -> np.ndarray:
        """(N, D) teacher features to (N, 128) float32 targets: adapted, minus the public mean, of length 1."""
        return F.normalize(self(torch.from_numpy(features)) - self.centre).numpy()


def settings(config: Config) -> Any:
    return [config.adapt, config.seed]


def run(run: Run) -> dict[str, Any]:
    """Writes work/targets.npy (N, 128) and adapter.safetensors; for a bootstrap also its reference's."""
    train, _ = load_parts(run)
    facts = _adapt(run, teach.FEATURES, TARGETS, "adapter.safetensors", train.identities)
    if run.facts("teacher")["bootstrap"]:
        _adapt(
            run,
            teach.REFERENCE_FEATURES,
            REFERENCE_TARGETS,
            "reference_adapter.safetensors",
            train.identities,
        )
    return facts


def load_adapter(run: Run, file: str = "adapter.safetensors") -> Adapter:
    state = load_file(run.path(file))
    adapter = Adapter(len(state["mean"]))
    adapter.load_state_dict(state)
    return adapter.eval()


def _adapt(run: Run, features_file: str, targets_file: str, adapter_file: str, labels: np.ndarray) -> dict[str, Any]:
    features = run.array(features_file)
    with run.progress("adapt", 2 * run.config.adapt.steps) as advance:
        adapter, accuracy = fit_adapter(features, labels, run.config.adapt, run.config.seed, advance)
    run.save_array(targets_file, adapter.targets(features))
    with whole(run.path(adapter_file)) as temporary:
        save_file(adapter.state_dict(), temporary)
    return {
        "summary": f"{features.shape[1]}-d to {EMBEDDING_DIM}-d; training faces recognised: "
        f"{100 * accuracy['refitted']:.1f}% by the re-fitted softmax, {100 * accuracy['adapted']:.1f}% adapted",
        **accuracy,
    }


def fit_adapter(
    features: np.ndarray,
    labels: np.ndarray,
    how: Adapt,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Adapter, dict[str, float]]:
    """The fitted module and the share of training faces that each classifier recognises.

    features: (N, D) float32; labels: (N,) int64, -1 = unlabelled. An unlabelled face takes part in eq. 3 alone.
    Without any label there is no softmax to re-fit: the module then keeps the similarities between faces.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, 404]).generate_state(1)[0]))
    adapter = Adapter(features.shape[1])
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    adapter.mean.copy_(x.mean(0))
    adapter.scale.copy_((x - adapter.mean).norm(dim=1).mean() / features.shape[1] ** 0.5)
    inputs = adapter.standardise(x)
    classes = int(y.max()) + 1
    known = torch.nonzero(y >= 0)[:, 0]
    refitted, classifier = nn.Linear(features.shape[1], classes), nn.Linear(EMBEDDING_DIM, classes)

    def refit_loss(chosen: Tensor) -> Tensor:
        return F.cross_entropy(refitted(inputs[chosen]), y[chosen])

    def adapt_loss(chosen: Tensor) -> Tensor:
        adapted = adapter(x[chosen])
        if not classes:
            return relational(adapted, inputs[chosen])
        logits = classifier(adapted)
        with torch.no_grad():
            soft = (refitted(inputs[chosen]) / how.temperature).softmax(1)
        labelled = y[chosen] >= 0
        classification = F.cross_entropy(logits, y[chosen].clamp(min=0), reduction="none")
        loss = (classification * labelled).sum() / labelled.sum().clamp(min=1)
        # T^2 keeps the softened term's gradient at the size of the hard one's (Hinton et al. 2015, section 2).
        distillation = F.cross_entropy(logits / how.temperature, soft) * how.temperature**2
        return loss + how.balance * distillation

    if classes:
        _fit(refitted.parameters(), refit_loss, known, how, seed, progress)
    every = torch.arange(len(x))
    _fit([*adapter.parameters(), *classifier.parameters()], adapt_loss, every, how, seed + 1, progress)
    with torch.no_grad():
        adapted = adapter(x)
        adapter.centre.copy_(adapted.mean(0))
        accuracy = {
            name: (logits.argmax(1) == y[known]).float().mean().item() if classes else 0.0
            for name, logits in (
                ("refitted", refitted(inputs[known])),
                ("adapted", classifier(adapted[known])),
            )
        }
    return adapter.eval(), accuracy


def _fit(
    parameters: Any,
    loss_of: Callable[[Tensor], Tensor],
    among: Tensor,
    how: Adapt,
    seed: int,
    progress: Callable[[int], None] | None,
) -> None:
    optimiser = torch.optim.AdamW(parameters, lr=how.lr, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(how.steps):
        chosen = among[torch.randint(len(among), (min(how.batch, len(among)),), generator=generator)]
        loss = loss_of(chosen)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress:
            progress(1)
