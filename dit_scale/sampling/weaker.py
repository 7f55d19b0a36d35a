"""The weaker models of guidance, by the names that ``guide_by`` takes; what has no name is the path of another run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dit_scale import draws
from dit_scale.diffusion import Pair, one_by_one, with_null
from dit_scale.diffusion.losses import LabelledDenoiser
from dit_scale.draws import Stream
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
    seed: int = 0

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


def _routed(drawing: Drawing) -> Pair:
    """Have a part of the tokens go around the routed blocks (TREAD, arXiv 2501.04765)."""
    _check_route(drawing, "routed")
    total, count = drawing.model.config.num_tokens, drawing.model.config.num_kept
    return _around(drawing, draws.subset(drawing.seed, Stream.ROUTING, drawing.indices, total, count))


def _dropped(drawing: Drawing) -> Pair:
    """Do without the routed blocks: path-drop guidance (SPRINT, arXiv 2510.21986)."""
    _check_route(drawing, "dropped")
    return _around(drawing, drawing.indices.new_empty(len(drawing.indices), 0))


def _check_route(drawing: Drawing, guide_by: str) -> None:
    if drawing.model.config.route is None:
        raise InputError(
            f"guide_by {guide_by} needs a network that was trained with a route, and this one has none; train with "
            f"routing.ratio, such as 0.5, or choose another guide_by"
        )


def _around(drawing: Drawing, kept_tokens: Tensor) -> Pair:
    """Return the network beside itself with these tokens kept, without its condition where it knows none."""
    nulls = drawing.model.condition.nulls(drawing.condition)
    condition = drawing.condition if nulls is None else nulls

    def weaker(noised: Tensor, time: Tensor) -> Tensor:
        output: Tensor = drawing.network(noised, time, condition, kept_tokens=kept_tokens)
        return output

    return one_by_one(drawing.alone(), weaker)


KINDS: dict[str, Callable[[Drawing], Pair]] = {"null": _null, "early": _early, "routed": _routed, "dropped": _dropped}
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
