"""Exponential moving averages of the weights, fp32, sharded as the optimizer state is."""

from collections.abc import Callable

import torch
from torch import Tensor

from dit_scale.distributed.fragments import completed, laid_out
from dit_scale.zero.optimizer_state import OptimizerState


class ShardedEMA:
    """This rank's part of an average: 4 bytes a parameter over all ranks, no communication to update."""

    def __init__(self, state: OptimizerState, decay_at: Callable[[int], float]):
        """Begin with the weights; ``decay_at`` gives the decay at an update, counted from 1."""
        self._state, self._decay_at = state, decay_at
        self.num_updates = 0
        """Of the run, as far as this average was told."""
        self._averages = [weights.clone() for weights in state.owned_masters]
        self.tensors = state.owned_in(self._averages)

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Move by update ``number``: ``ema = decay * ema + (1 - decay) * weights``."""
        self.num_updates = number
        torch._foreach_lerp_(self._averages, self._state.owned_masters, 1.0 - self._decay_at(number))

    def laid_out(self, device: torch.device | str) -> dict[str, Tensor]:
        """Return this rank's part with room for the others': this alone may fail on one rank and not on others."""
        return laid_out(self._state.owned, self.tensors, self._state.shapes, device)

    def completed(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole average, by parameter name, from each rank's part (collective)."""
        return completed(parts, self._state.shapes)
