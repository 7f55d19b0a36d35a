"""Which rank is slow: what each spends its time on, summed into the one all_reduce that a step has anyway.

A rank's compute_seconds hold its waiting for others in collectives, so that all ranks look alike as soon as one is
slow. Its forward_seconds do not: below ZeRO 3 no collective is in a forward pass.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dit_scale.distributed.runtime import World
from dit_scale.supervision.phases import Phase

_KINDS = ("data", "compute", "save", "forward")
_PHASES: tuple[Phase, ...] = ("data", "compute", "save")


class ForwardTime:
    """The time of a module's forward passes in training: the host's, or the GPU's on CUDA."""

    def __init__(self, module: nn.Module):
        self._marks: list[tuple[_Mark, _Mark]] = []
        self._begun: _Mark | None = None
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def take(self) -> float:
        """Return the seconds since the last time; what a GPU has not done yet is in the next ones."""
        done = [(begin, end) for begin, end in self._marks if end.is_past()]
        self._marks = self._marks[len(done) :]
        return sum(begin.seconds_until(end) for begin, end in done)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self._begun = _Mark()

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training and self._begun is not None:
            self._marks.append((self._begun, _Mark()))


class _Mark:
    """A moment: an event in the GPU's stream where there is one, which nobody waits for; else the host's clock."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if torch.cuda.is_available() else None
        self._time = time.monotonic()
        if self._event is not None:
            self._event.record()

    def is_past(self) -> bool:
        return self._event is None or self._event.query()

    def seconds_until(self, end: "_Mark") -> float:
        if self._event is None or end._event is None:
            return end._time - self._time
        return float(self._event.elapsed_time(end._event)) / 1000.0


class RankTimes:
    """The times of all ranks: each fills its own places of a vector that is summed over ranks."""

    def __init__(self, world: World, forward: ForwardTime, every_steps: int):
        self._world, self._forward, self._every_steps = world, forward, every_steps
        self._sums = torch.zeros(len(_KINDS), world.world_size, dtype=torch.float64)
        self._num_steps = 0

    def own(self, seconds: Mapping[Phase, float]) -> Tensor:
        """Return this rank's share of the vector, fp32 [kinds * ranks]: its times since its last step's end."""
        mine = [*(seconds[phase] for phase in _PHASES), self._forward.take()]
        vector = torch.zeros(len(_KINDS), self._world.world_size)
        vector[:, self._world.rank] = torch.tensor(mine)
        return vector.flatten()

    def metrics(self, times: Sequence[float]) -> dict[str, Any]:
        """Return what a step's metrics say of the summed vector: the longest times, and who is slowest by itself."""
        table = torch.tensor(times, dtype=torch.float64).view(len(_KINDS), -1)  # [kinds, ranks]
        self._sums += table
        self._num_steps += 1
        data, compute, save, forward = table
        longest = {"data": data, "compute": compute, "save": save}
        return {f"{kind}_seconds": seconds.max().item() for kind, seconds in longest.items()} | {
            "slowest_rank": int((data + forward).argmax())
        }

    def line(self, step: int) -> dict[str, Any] | None:
        """Return each rank's mean times since the last line, every n-th step."""
        if step % self._every_steps:
            return None
        means = (self._sums / self._num_steps).tolist()
        self._sums.zero_()
        self._num_steps = 0
        return {"step": step} | {f"{kind}_seconds": mean for kind, mean in zip(_KINDS, means, strict=True)}
