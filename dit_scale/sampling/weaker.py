"""The weaker models of guidance, by the names that ``guide_by`` takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dit_scale.diffusion import Pair, with_null
from dit_scale.diffusion.losses import LabelledDenoiser
from dit_scale.errors import InputError, nearest
from dit_scale.models import DiT

Network = Callable[..., Any]
"""As ``DiT.forward``, which takes what is passed by keywords, too; its outputs are fp32."""


@dataclass(frozen=True)
class Drawing:
    """Images about to be drawn, as what guides them sees them."""

    network: Network
    model: DiT
    """What the network is; its weights are not looked at."""
    condition: Tensor
    """[N, ...]"""
    indices: Tensor
    """Of the images, [N]."""
    cfg_scale: float

    def under(self, condition: Tensor, **asked: Any) -> LabelledDenoiser:
        """Return the network under a condition, with further keywords of ``DiT.forward``."""
        return lambda noised, time: self.network(noised, time, condition, **asked)


def _null(drawing: Drawing) -> Pair:
    nulls = drawing.model.condition.nulls(drawing.condition)
    if nulls is None:
        raise InputError(
            f"cfg_scale {drawing.cfg_scale} needs a null label, and this model was built with label_dropout 0 or "
            "without a condition; set cfg_scale to 1, or train with a condition and label_dropout above 0"
        )
    return with_null(drawing.network, drawing.condition, nulls)


KINDS: dict[str, Callable[[Drawing], Pair]] = {"null": _null}
"""Each makes the pair of a drawing's network and the weaker one, or raises InputError where the model has none."""


def pair_of(guide_by: str | None, drawing: Drawing) -> Pair:
    """Return the network beside the weaker one that a setting names; None is ``null``.

    Raises:
        InputError: the setting names none, or one that the model does not have.
    """
    name = guide_by or "null"
    if name not in KINDS:
        raise InputError(f"guide_by {name!r} is unknown{nearest(name, KINDS)}")
    return KINDS[name](drawing)
