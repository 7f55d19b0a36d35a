"""Which gradient norm is a spike: told on the device, where the norm of the step before is known first."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dit_scale.zero.update_guard import Verdict

NUM_NORMS = 100
FEWEST_NORMS = 20
"""Updates before which nothing is called a spike."""


class SpikeLimit:
    """A factor times the median of the latest updates' gradient norms; in fp64, as the host would reckon it."""

    def __init__(self, factor: float, norms: Sequence[float], device: torch.device | str):
        """With a ``factor`` of 0 there are no spikes; ``norms`` are those that a checkpoint kept, oldest first."""
        self._factor, self._device = factor, torch.device(device)
        self.restore(norms)

    def restore(self, norms: Sequence[float]) -> None:
        """Go back to a checkpoint's norms."""
        latest = list(norms)[-NUM_NORMS:]
        padded = [math.inf] * (NUM_NORMS - len(latest)) + latest  # inf where there is none yet: an update's is finite
        self._norms = torch.tensor(padded, dtype=torch.float64, device=self._device)  # oldest first

    def limit(self) -> Tensor | float:
        """Return the norm above which the next update is a spike, fp64 [] on the device."""
        if not self._factor:
            return math.inf
        count = torch.isfinite(self._norms).sum()
        middle = torch.stack(((count - 1) // 2, count // 2)).clamp(min=0)
        lower, upper = self._norms.sort().values.take(middle).unbind()  # the same one where the count is odd
        return torch.where(count < FEWEST_NORMS, math.inf, (lower + upper) / 2 * self._factor)

    def note(self, verdict: Verdict) -> None:
        """Remember the norm of an update that happened; the host does not wait for it."""
        moved = torch.cat((self._norms[1:], verdict.norm_there.view(1)))
        self._norms = torch.where(verdict.is_discarded_there.bool(), self._norms, moved)

    def norms(self) -> list[float]:
        """Return what a checkpoint must keep, so that spikes are told alike after it; waits for the device."""
        return [norm for norm in self._norms.tolist() if math.isfinite(norm)]
