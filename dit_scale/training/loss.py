"""What is trained: an objective, further losses beside it, and the draws that each image gets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dit_scale import draws
from dit_scale.conditioning import Condition
from dit_scale.diffusion import Objective, Terms
from dit_scale.draws import Stream
from dit_scale.latents import LatentSpec, sample_latent

Network = Callable[..., Any]
"""``(noised_latent, time, condition) -> output``; with ``hidden=(8, ...)`` it returns ``(output, [tokens, ...])``."""
Hidden = int | str
"""A block by its number from 1, for its tokens; or a side layer by its name, for what it returns."""


class Pass(NamedTuple):
    """A micro batch on its way through the network, as an auxiliary loss sees it."""

    positions: Tensor
    """Of the images in the stream, [N]."""
    latent: Tensor
    """Without noise, [N, C, S, S]."""
    time: Tensor
    """As the objective counts it, [N] or [N, k]."""
    hidden: dict[Hidden, Tensor]
    """The tokens [N, T, D] of what a loss asked for, in the objective's first call."""
    crops: Tensor | None = None
    """The images that became the latents, uint8 [N, 3, H, W], where the data give them."""


class AuxiliaryLoss(Protocol):
    """A loss beside the objective's."""

    @property
    def hidden(self) -> tuple[Hidden, ...]:
        """The blocks and the side layers whose tokens it needs."""

    def terms(self, seen: Pass) -> Terms:
        """Return its terms; their names are no other loss's."""


@dataclass(frozen=True)
class LossFunction:
    """An objective with what it is given, and the losses beside it."""

    objective: Objective
    latents: LatentSpec
    seed: int
    label_dropout: float
    condition: Condition
    auxiliary: tuple[AuxiliaryLoss, ...] = ()

    def __call__(
        self,
        network: Network,
        moments: Tensor,
        conditions: Tensor,
        positions: Tensor,
        crops: Tensor | None = None,
    ) -> Terms:
        """Return the terms of each image's loss.

        Moments are [N, 2C, H, W], conditions [N, ...], stream positions [N], crops [N, 3, H, W] where a loss beside the
        objective's sees them.
        """
        shape = self.latents.shape
        latent = sample_latent(moments, draws.normal(self.seed, Stream.POSTERIOR, positions, shape), self.latents)
        noise = draws.normal(self.seed, Stream.NOISE, positions, shape)
        time = self.objective.times_from_uniform(self._uniform(positions))
        if self.condition.has_null and self.label_dropout > 0:
            is_dropped = draws.uniform(self.seed, Stream.LABEL_DROPOUT, positions) < self.label_dropout
            conditions = self.condition.dropped(conditions, is_dropped)
        wanted = {hidden for loss in self.auxiliary for hidden in loss.hidden}
        asked = _Asked(network, conditions, tuple(sorted(wanted, key=lambda hidden: (isinstance(hidden, str), hidden))))
        terms = self.objective.loss(asked, latent, noise, time)
        seen = Pass(positions, latent, time, asked.hidden, crops)
        for loss in self.auxiliary:
            terms = terms | loss.terms(seen)
        return terms

    def _uniform(self, positions: Tensor) -> Tensor:
        """Return the draws of times, [N], or [N, k] for an objective with several times an image."""
        count = self.objective.num_times
        return draws.uniform(self.seed, Stream.TIME, positions, () if count == 1 else (count,))


class _Asked:
    """The network with its conditions settled, as an objective calls it; keeps the hidden states that are asked for."""

    def __init__(self, network: Network, conditions: Tensor, wanted: tuple[Hidden, ...]):
        self._network, self._conditions, self._wanted = network, conditions, wanted
        self.hidden: dict[Hidden, Tensor] = {}

    def __call__(self, noised: Tensor, time: Tensor) -> Tensor:
        output: Tensor
        if self._wanted and not self.hidden:
            output, states = self._network(noised, time, self._conditions, hidden=self._wanted)
            self.hidden = dict(zip(self._wanted, states, strict=True))
        else:
            output = self._network(noised, time, self._conditions)
        return output
