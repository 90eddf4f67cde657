"""Whether photos can be given to an artifact, and what speaks against its answers. Needs no torch."""

from export import crops
from export.sidecar import Sidecar
from faces.errors import UserError


def check(contract: Sidecar) -> None:
    """UserError where a photo is not all that the file takes, or its crop is not built here."""
    crops.check(contract)
    if contract.takes_alpha:
        raise UserError(
            f"{contract.file} takes an alpha with each face, and a photo has none: export it with another --alpha "
            "than input"
        )


def caution(contract: Sidecar) -> str | None:
    """A sentence on a file that did not pass its gate; None where it passed."""
    parity = contract.parity
    if parity.passed is False:
        return f"{contract.file} differs from its model and was kept on request: {parity.reason}"
    return None if parity.passed else f"{contract.file} was never compared with its model: {parity.reason}"
