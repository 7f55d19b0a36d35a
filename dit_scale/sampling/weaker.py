"""The weaker models of guidance, by the names that ``guide_by`` takes; what has no name is the path of another run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dit_scale.diffusion import Pair, one_by_one, with_null
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
    other: Network | None = None
    """Of the run or checkpoint that ``guide_by`` is the path of."""

    def alone(self, **asked: Any) -> LabelledDenoiser:
        """Return the network under its condition, with further keywords of ``DiT.forward``."""
        return lambda noised, time: self.network(noised, time, self.condition, **asked)


def _null(drawing: Drawing) -> Pair:
    nulls = drawing.model.condition.nulls(drawing.condition)
    if nulls is None:
        raise InputError(
            f"cfg_scale {drawing.cfg_scale} needs a null label, and this model was built with label_dropout 0 or "
            "without a condition; set cfg_scale to 1, or train with a condition and label_dropout above 0"
        )
    return with_null(drawing.network, drawing.condition, nulls)


def _early(drawing: Drawing) -> Pair:
    if not drawing.model.config.early_block:
        raise InputError(
            "guide_by early needs a network with a second final layer, and this one has none; train with "
            "model.early_block, such as 8, or choose another guide_by"
        )

    def pair(noised: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        output, (early,) = drawing.network(noised, time, drawing.condition, hidden=("early_layer",))
        return output, early

    return pair


KINDS: dict[str, Callable[[Drawing], Pair]] = {"null": _null, "early": _early}
"""Each makes the pair of a drawing's network and the weaker one, or raises InputError where the model has none."""


def pair_of(guide_by: str | None, drawing: Drawing) -> Pair:
    """Return the network beside the weaker one that a setting names; None is ``null``.

    Raises:
        InputError: the setting names one that the model does not have, or a path whose network is not there.
    """
    if not is_path(guide_by):
        return KINDS[guide_by or "null"](drawing)
    other = drawing.other
    if other is None:
        raise InputError(f"guide_by {guide_by!r} is unknown{nearest(str(guide_by), KINDS)}")
    return one_by_one(drawing.alone(), lambda noised, time: other(noised, time, drawing.condition))


def is_path(guide_by: str | None) -> bool:
    """Return whether a setting names no kind, and so is the path of another run or checkpoint."""
    return guide_by is not None and guide_by not in KINDS
