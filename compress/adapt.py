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
from students.student import EMBEDDING_DIM

TARGETS, REFERENCE_TARGETS = "work/targets.npy", "work/reference_targets.npy"


class Adapter(nn.Module):
    """Teacher features (N, D) to adapted features (N, 128); the input is standardised by the public set.

    Section III-D names two fully connected layers and no non-linearity between them; there is none here, which
    left more of what the teacher tells apart in people it was not adapted to.
    """

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
        return self.fc2(self.fc1(self.standardise(features)))

    @torch.no_grad()
    def targets(self, features: np.ndarray) -> np.ndarray:
        """(N, D) teacher features to (N, 128) float32 targets: adapted, minus the public mean, of length 1."""
        return F.normalize(self(torch.from_numpy(features)) - self.centre).numpy()


def settings(config: Config) -> Any:
    return [config.adapt, config.distill.trains, config.seed, torch.__version__]


def run(run: Run) -> dict[str, Any]:
    """Writes work/targets.npy (N, 128) and adapter.safetensors; for a bootstrap also its reference's."""
    if not run.config.distill.trains:
        return {"summary": "nothing learns from the teacher"}
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
    features = run.features(features_file)
    with run.progress("adapt", 2 * run.config.adapt.steps) as advance:
        adapter, accuracy = fit_adapter(features, labels, run.config.adapt, run.config.seed, advance)
    run.save_features(targets_file, adapter.targets(features))
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
    """The fitted module and the share of training faces that each classifier of `fit_classifiers` recognises."""
    adapter, refitted, classifier = fit_classifiers(features, labels, how, seed, progress)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    known = y >= 0
    with torch.no_grad():
        accuracy = {
            name: (logits.argmax(1) == y[known]).float().mean().item() if known.any() else 0.0
            for name, logits in (
                ("refitted", refitted(adapter.standardise(x[known]))),
                ("adapted", classifier(adapter(x)[known])),
            )
        }
    return adapter, accuracy


def fit_classifiers(
    features: np.ndarray,
    labels: np.ndarray,
    how: Adapt,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Adapter, nn.Linear, nn.Linear]:
    """The fitted module in evaluation mode, the teacher's re-fitted softmax layer, which takes standardised features,
    and the module's own, which takes adapted ones.

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
    refitted, classifier = (nn.Linear(width, max(1, classes)) for width in (features.shape[1], EMBEDDING_DIM))

    def adapt_loss(chosen: Tensor) -> Tensor:
        adapted = adapter(x[chosen])
        if not classes:
            return similarity_loss(adapted, inputs[chosen])
        with torch.no_grad():
            teacher_logits = refitted(inputs[chosen])
        loss = bridge_loss(classifier(adapted), teacher_logits, y[chosen], how.balance, how.temperature)
        return loss + how.keep * similarity_loss(adapted, inputs[chosen]) if how.keep else loss

    if classes:
        fit_softmax(refitted, inputs, y, how, seed, progress)
    every = torch.arange(len(x))
    _fit([*adapter.parameters(), *classifier.parameters()], adapt_loss, every, how, seed + 1, progress)
    with torch.no_grad():
        adapter.centre.copy_(adapter(x).mean(0))
    return adapter.eval(), refitted, classifier


def fit_softmax(
    layer: nn.Linear,
    inputs: Tensor,
    labels: Tensor,
    how: Adapt,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fit a classification layer, in place, to features (N, D) and labels (N,) by cross-entropy; -1 = left out."""

    def loss(chosen: Tensor) -> Tensor:
        return F.cross_entropy(layer(inputs[chosen]), labels[chosen])

    _fit(layer.parameters(), loss, torch.nonzero(labels >= 0)[:, 0], how, seed, progress)


def bridge_loss(logits: Tensor, teacher: Tensor, labels: Tensor, balance: float, temperature: float) -> Tensor:
    """Eq. 1: the cross-entropy to the labels (eq. 2) plus `balance` times that to the teacher's softmax (eq. 3).

    logits, teacher: (B, C), of the adapted feature and of the re-fitted softmax layer; labels: (B,) int64, -1 =
    unlabelled. The first term is the mean over the labelled faces (0 without any), the second over all, both
    sides softened by `temperature`, times its square, which keeps its gradient at the size of the first one's
    (Hinton et al. 2015, section 2).
    """
    known = labels >= 0
    per_face = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    classification = (per_face * known).sum() / known.sum().clamp(min=1)
    distillation = F.cross_entropy(logits / temperature, (teacher / temperature).softmax(1)) * temperature**2
    return classification + balance * distillation


def similarity_loss(adapted: Tensor, features: Tensor, temperature: float = 10.0) -> Tensor:
    """What stands in for eq. 1 where nobody is labelled: which of the other faces of a batch a face resembles.

    The mean over faces of the cross-entropy from the softmax of T times the cosines of `features` (B, D), B > 1,
    to that of `adapted` (B, 128): its minimum keeps the teacher's cosines, whatever the two widths.
    """
    others = ~torch.eye(len(adapted), dtype=torch.bool)
    found, wanted = (
        temperature * (unit @ unit.T)[others].view(len(unit), -1)
        for unit in (F.normalize(adapted), F.normalize(features))
    )
    return F.cross_entropy(found, wanted.softmax(1))


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
