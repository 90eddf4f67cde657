"""What the loop asks of a method."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from teachers.settings import Finetune

if TYPE_CHECKING:
    from teachers.backbones import Backbone


class Method(nn.Module):
    """The objective of a fine-tuning, with what only training needs (class weights, queues).

    It is not wrapped by DDP: each process computes the loss of the whole batch, on features gathered with their
    gradient (`faces.distributed.gather`), so that batch-hard negatives, queues and quality statistics see every
    process's faces.
    """

    sampler: ClassVar[str] = "shuffled"
    needs_alpha: ClassVar[bool] = False
    """Does the teacher need a per-image alpha?"""

    def __init__(self, how: Finetune) -> None:
        super().__init__()
        self.how = how
        self.autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        """Gives an own network of the method's the precision of the one that learns."""
        self.register_buffer("centre", None)

    centre: Tensor | None
    """(D,): what is taken from the features before cosines are trained, and then from the teacher's own; or None
    where a method trains other distances."""

    @staticmethod
    def adapt(backbone: "Backbone", how: Finetune) -> None:
        """Make the backbone trainable as the method wants it, in place."""
        backbone.requires_grad_(True)

    def start(self, features: Tensor, labels: Tensor) -> None:
        """Set what depends on the teacher as it is: features (N, D) of N sample faces, labels (N,)."""

    def see(self, images: Tensor, draws: Tensor) -> list[Tensor]:
        """The views of images (n, 3, S, S) in [0, 1] that the teacher gets, each of the same shape."""
        raise NotImplementedError

    def forward(self, features: list[Tensor], labels: Tensor, views: list[Tensor]) -> dict[str, Tensor]:
        """Loss terms from this process's features, one (n, D) a view, labels (n,) and the views themselves."""
        raise NotImplementedError

    def centred(self, features: list[Tensor]) -> list[Tensor]:
        """The features without their centre."""
        return features if self.centre is None else [view - self.centre for view in features]

    def follow(self, backbone: nn.Module) -> None:
        """Called behind each step, for what follows the backbone as it learns."""


def create_method(how: Finetune, embedding_dim: int, classes: int, backbone: "Backbone") -> Method:
    """The objective that `how.method` names."""
    from teachers.methods.full import Full
    from teachers.methods.octuplet import Octuplet
    from teachers.methods.petalface import Lora, Petalface
    from teachers.methods.qgface import QGFace

    if how.method == "octuplet":
        return Octuplet(how, backbone)
    if how.method == "qgface":
        return QGFace(how, embedding_dim, classes, backbone)
    return {"full": Full, "lora": Lora, "petalface": Petalface}[how.method](how, embedding_dim, classes)


def kind_of(method: str) -> type[Method]:
    """The class of a method, for what it says without being built."""
    from teachers.methods.full import Full
    from teachers.methods.octuplet import Octuplet
    from teachers.methods.petalface import Lora, Petalface
    from teachers.methods.qgface import QGFace

    return {"full": Full, "lora": Lora, "petalface": Petalface, "octuplet": Octuplet, "qgface": QGFace}[method]
