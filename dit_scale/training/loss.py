"""What is trained: an objective, further losses beside it, and the draws that each image gets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dit_scale import draws
from dit_scale.conditioning import Condition
from dit_scale.diffusion import Objective, Terms
from dit_scale.draws import Stream
from dit_scale.latents import LatentSpec, sample_latent
from dit_scale.training.routing import TokenDraws

Network = Callable[..., Any]
"""``(noised_latent, time, condition) -> output``; with ``hidden=(8, ...)`` it returns ``(output, [tokens, ...])``."""
Hidden = int | str
"""A block by its number from 1, for its tokens; or a side layer of the network by its name, for what it returns."""


class Pass(NamedTuple):
    """A micro batch on its way through the network, as an auxiliary loss sees it."""

    positions: Tensor
    """Of the images in the stream, [N]."""
    latent: Tensor
    """Without noise, [N, C, S, S]."""
    noise: Tensor
    """What the objective mixes in, [N, C, S, S]."""
    time: Tensor
    """As the objective counts it, [N] or [N, k]."""
    hidden: dict[Hidden, Tensor]
    """What a loss asked for, in the objective's first call: of a block its tokens [N, T, D]."""
    output: Tensor
    """What the network returned in that call, [N, C_out, S, S]."""
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
    routing: TokenDraws | None = None

    def at(self, position: int) -> "LossFunction":
        """Return the loss of a step that holds the image at this position of the stream."""
        return self if self.routing is None else replace(self, routing=self.routing.at(position))

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
        hidden = {each for loss in self.auxiliary for each in loss.hidden}
        routed = {} if self.routing is None else self.routing.draw(self.seed, positions)
        asked = _Asked(network, conditions, tuple(sorted(hidden, key=str)), routed)
        terms = self.objective.loss(asked, latent, noise, time)
        assert asked.output is not None, "an objective calls the network"
        seen = Pass(positions, latent, noise, time, asked.hidden, asked.output, crops)
        for loss in self.auxiliary:
            terms = terms | loss.terms(seen)
        return terms

    def _uniform(self, positions: Tensor) -> Tensor:
        """Return the draws of times, [N], or [N, k] for an objective with several times an image."""
        count = self.objective.num_times
        return draws.uniform(self.seed, Stream.TIME, positions, () if count == 1 else (count,))


class _Asked:
    """The network with conditions and routes settled, as an objective calls it; keeps the hidden states asked for."""

    def __init__(self, network: Network, conditions: Tensor, asked: tuple[Hidden, ...], routed: dict[str, Tensor]):
        self._network, self._conditions, self._asked, self._routed = network, conditions, asked, routed
        self.hidden: dict[Hidden, Tensor] = {}
        self.output: Tensor | None = None
        """Of the first call."""

    def __call__(self, noised: Tensor, time: Tensor) -> Tensor:
        output: Tensor
        if self._asked and not self.hidden:
            output, states = self._network(noised, time, self._conditions, hidden=self._asked, **self._routed)
            self.hidden = dict(zip(self._asked, states, strict=True))
        else:
            output = self._network(noised, time, self._conditions, **self._routed)
        if self.output is None:
            self.output = output
        return output
