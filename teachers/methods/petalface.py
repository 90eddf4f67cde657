"""PETALface: the frozen backbone and twin adapters mixed by each image's quality; single LoRA as its ablation."""

from typing import TYPE_CHECKING, ClassVar

from faces.errors import UserError
from teachers import lora
from teachers.methods.full import Full
from teachers.settings import Finetune

if TYPE_CHECKING:
    from teachers.backbones import Backbone


class Petalface(Full):
    """Narayan et al. 2024: twin LoRA, alpha from a no-reference quality score, CosFace. Only adapters and head
    train; frozen batch norms stay in evaluation mode (the official code lets their statistics drift)."""

    needs_alpha: ClassVar[bool] = True
    twins: ClassVar[bool] = True

    @classmethod
    def adapt(cls, backbone: "Backbone", how: Finetune) -> None:
        backbone.requires_grad_(False)
        attach(backbone, how, cls.twins)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(lora.is_adapter(name))


class Lora(Petalface):
    """The same layers with one adapter each, whatever an image's quality."""

    needs_alpha: ClassVar[bool] = False
    twins: ClassVar[bool] = False


def attach(backbone: "Backbone", how: Finetune, twins: bool) -> list[str]:
    """Adapters where the settings, or else the backbone, say; `twins=False` gives all of them one branch. UserError
    where no layer can have one."""
    targets = lora.targets_for(backbone)
    twin, single = how.twin or targets["twin"], how.single or targets["single"]
    if not twins:
        twin, single = "^$", f"({twin})|({single})"
    try:
        return lora.attach(backbone, how.rank, twin, single, scale=how.lora_scale, dropout=how.dropout)
    except ValueError as problem:
        raise UserError(f"{problem}: choose other layers with the settings twin and single") from None
