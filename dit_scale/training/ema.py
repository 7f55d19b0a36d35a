"""An exponential moving average of the weights, fp32, sharded as the optimizer state is."""

import torch
from torch import Tensor

from dit_scale.distributed.fragments import OptimizerState, gather


class ShardedEMA:
    """This rank's part of the average: 4 bytes a parameter over all ranks, no communication to update."""

    def __init__(self, state: OptimizerState, decay: float):
        self._state = state
        self.decay = decay
        self.tensors = [weights.clone() for weights in self._weights()]

    @torch.no_grad()
    def update(self) -> None:
        """Move by one step: ``ema = decay * ema + (1 - decay) * weights``."""
        torch._foreach_lerp_(self.tensors, self._weights(), 1.0 - self.decay)

    def gather(self, device: torch.device | str) -> dict[str, Tensor]:
        """Return the whole average, by parameter name, on every rank (collective)."""
        return gather(self._state.owned, self.tensors, self._state.shapes, device)

    def _weights(self) -> list[Tensor]:
        master = self._state.master
        return [fragment.of(master) for fragment in self._state.owned]
