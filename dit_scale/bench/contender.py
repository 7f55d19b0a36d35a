"""One training code of several that are measured against each other: its step, the parts of it, and its memory."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch

from dit_scale.bench.measure import Spread, cost_of, in_rounds
from dit_scale.bench.profile import Kernel, kernels_of, shares_by_class
from dit_scale.distributed.runtime import keep_freed_memory

_STEPS_ON_GPU = 4
"""Steps that follow each other before the GPU is waited for, as in training; on a CPU one is long enough."""
_WARM_UP = 3


class Trained(Protocol):
    """What can take training steps."""

    def step(self) -> object:
        """Take a step."""

    def parts(self) -> Mapping[str, Callable[[], object]]:
        """Return a step cut into what it consists of, to be called in this order."""


@dataclass(frozen=True)
class Contender:
    """A training loop that has taken its first steps."""

    loop: Trained
    keeps_memory: bool
    """On a CPU: whether freed memory stays with the process, as its training has it."""
    held_bytes: int
    """Of the GPU's memory, from step to step; 0 on a CPU."""

    def steps(self) -> None:
        """Take the steps that one measurement is of."""
        for _ in range(steps_at_once()):
            self.run(self.loop.step)

    def run(self, action: Callable[[], object]) -> None:
        """Run a step or a part of one in this one's memory."""
        if not torch.cuda.is_initialized():
            keep_freed_memory(self.keeps_memory)
        action()


def steps_at_once() -> int:
    """Return how many steps one measurement is of."""
    return _STEPS_ON_GPU if torch.cuda.is_initialized() else 1


def contend(build: Callable[[], Trained], keeps_memory: bool) -> Contender:
    """Build a loop and take its first steps, in which code is compiled and every buffer made."""
    before = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
    loop = build()
    for _ in range(_WARM_UP if torch.cuda.is_initialized() else 2):
        loop.step()
    held = torch.cuda.memory_allocated() - before if torch.cuda.is_initialized() else 0
    return Contender(loop, keeps_memory, held)


def compare(contenders: Mapping[str, Contender], rounds: int, device: str) -> dict[str, Any]:
    """Return the figures of each: seconds of a step and of its parts, kernels, and on a GPU memory and waits."""
    on_gpu = device.startswith("cuda")
    number = steps_at_once()
    # Steps of each ahead of those that count: the memory that the one before gave back is taken again.
    actions = {name: one.steps for name, one in contenders.items()}
    costs = in_rounds(actions, rounds, before=actions)
    seconds = {name: [cost.seconds / number for cost in found] for name, found in costs.items()}
    ours, *others = contenders
    kernels = {name: kernels_of(partial(one.run, one.loop.step), device) for name, one in contenders.items()}
    figures = {
        "seconds": {name: asdict(Spread.of(found)) for name, found in seconds.items()},
        "wall_seconds": {
            name: asdict(Spread.of([cost.wall_seconds / number for cost in found])) for name, found in costs.items()
        },
        "speedup": {
            name: asdict(Spread.of([b / a for a, b in zip(seconds[ours], seconds[name], strict=True)]))
            for name in others
        },
        "parts": {name: _parts(one, rounds) for name, one in contenders.items()},
        "kernels": {name: shares_by_class(found) for name, found in kernels.items()},
        "longest_kernels": {name: [asdict(kernel) for kernel in found[:60]] for name, found in kernels.items()},
    }
    if on_gpu:
        figures["memory_bytes"] = {name: _memory(one) for name, one in contenders.items()}
        figures["host_syncs"] = {name: _host_syncs(one.loop.step) for name, one in contenders.items()}
        figures["gpu_busy"] = {name: _total(kernels[name]) / Spread.of(seconds[name]).median for name in contenders}
    return figures


def _parts(contender: Contender, rounds: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each part of a step; parts follow each other as in a step."""
    parts = contender.loop.parts()
    found: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for action in parts.values():
            contender.run(action)
        for name, action in parts.items():
            found[name].append(cost_of(partial(contender.run, action)).seconds)
    return {name: asdict(Spread.of(values)) for name, values in found.items()}


def _memory(contender: Contender) -> dict[str, int]:
    """Return the GPU memory that one holds between steps, and the most of its own within a step."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.loop.step()
    torch.cuda.synchronize()
    return {"held": contender.held_bytes, "peak": contender.held_bytes + torch.cuda.max_memory_allocated() - before}


def _host_syncs(step: Callable[[], object]) -> int:
    """Return how often the host waits for the GPU in a step, as PyTorch warns of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _total(kernels: list[Kernel]) -> float:
    return sum(kernel.seconds for kernel in kernels)
