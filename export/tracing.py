"""A model as every exporter wants it: on the CPU, in eval mode, and left as it was."""

import contextlib
import copy
from collections.abc import Iterator

from torch import nn

INPUT_NAME = "face"
ALPHA_NAME = "alpha"
OUTPUT_NAME = "embedding"


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode on the CPU; every submodule's own mode is put back afterwards.

    Module by module, as a model under training may hold frozen batch norms that are in eval mode on purpose.
    A model on another device is copied.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        yield copy.deepcopy(model).cpu().eval()
        return
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode
