"""Exponential moving averages of the weights, fp32, sharded as the optimizer state is.

Whether an update happened is known on the device first: updates are counted there, and one that was discarded moves
the averages by 0.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dit_scale.distributed.fragments import completed, laid_out
from dit_scale.distributed.transfers import Readback, send
from dit_scale.zero.optimizer_state import OptimizerState

_UPDATES, _ASKED_BEFORE = 1024, 64
"""How many updates' moves are reckoned at a time; so long before they are used up the count is asked for."""


class ShardedEMA:
    """This rank's part of an average: 4 bytes a parameter over all ranks, no communication to update."""

    def __init__(self, state: OptimizerState):
        """Begin with the weights."""
        self._state = state
        self._averages = [weights.clone() for weights in state.owned_masters]
        self.tensors = state.owned_in(self._averages)

    @torch.no_grad()
    def move(self, by: Tensor) -> None:
        """Move by a part [] of the way to the weights: ``ema = (1 - by) * ema + by * weights``."""
        torch._foreach_lerp_(self._averages, self._state.owned_masters, [by] * len(self._averages))

    def laid_out(self, device: torch.device | str) -> dict[str, Tensor]:
        """Return this rank's part with room for the others': this alone may fail on one rank and not on others."""
        return laid_out(self._state.owned, self.tensors, self._state.shapes, device)

    def completed(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole average, and what is never trained, by name, from each rank's part (collective)."""
        return completed(parts, self._state.shapes) | self._state.drawn


class Moves:
    """How far averages move by each update of a run, which is counted on the device.

    Decays may depend on the update's number. They are reckoned by the host, many updates ahead, so that they are the
    same to the last bit on every device.
    """

    def __init__(self, decays: Sequence[Callable[[int], float]], num_updates: int, device: torch.device):
        """``decays`` give the decay at an update, counted from 1; ``num_updates`` have happened."""
        self._decays = decays
        self._count = torch.tensor(num_updates, device=device)
        self._reckon(num_updates, _UPDATES)

    @property
    def num_updates(self) -> int:
        """The updates that happened; asking waits for the device."""
        return int(self._count)

    def next(self, is_discarded: Tensor) -> tuple[Tensor, ...]:
        """Count an update, unless its flag [] is 1; return how far it moves each average, fp32 [], or 0."""
        if self._steps_left == _ASKED_BEFORE:
            self._asked = Readback(self._count.view(1).clone())
        if self._steps_left == 0:
            self._reckon(int(self._asked.read()[0]), _UPDATES - _ASKED_BEFORE)
        self._steps_left -= 1
        moves = self._table.index_select(1, (self._count - self._first).view(1))[:, 0] * (1.0 - is_discarded)
        self._count += 1 - is_discarded.long()
        return moves.unbind()

    def _reckon(self, num_updates: int, steps: int) -> None:
        """Fill the table for the updates after ``num_updates``, of which some may have happened by now."""
        updates = range(num_updates + 1, num_updates + 1 + _UPDATES)
        table = [[1.0 - decay(update) for update in updates] for decay in self._decays]
        self._table = send(torch.tensor(table, dtype=torch.float32), self._count.device)  # [averages, updates]
        self._first, self._steps_left = num_updates, steps
