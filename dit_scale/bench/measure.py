"""What an action costs, and several actions against each other."""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cost:
    """What an action took."""

    cpu_seconds: float
    """Of all threads of this process, and of the child processes that ended meanwhile."""
    wall_seconds: float
    gpu_seconds: float | None = None
    """Between two events on the GPU ahead of and behind it; None where no GPU is in use."""

    @property
    def seconds(self) -> float:
        """The GPU's seconds where one computes, CPU seconds elsewhere."""
        return self.cpu_seconds if self.gpu_seconds is None else self.gpu_seconds


@dataclass(frozen=True)
class Spread:
    """A figure over rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one value a round."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g}-{self.most:.3g})"


def what_seconds_are(device: str) -> str:
    """Return, for a report, what ``Cost.seconds`` is on a device."""
    return "CPU seconds of all threads" if device == "cpu" else "seconds between events on the GPU"


def cost_of(action: Callable[[], object]) -> Cost:
    """Run an action and return what it took, until a GPU that is in use has done its part."""
    gc.collect()  # what others left behind is not this one's
    if not torch.cuda.is_initialized():
        cpu_seconds, started = _cpu_seconds(), time.perf_counter()
        action()
        return Cost(_cpu_seconds() - cpu_seconds, time.perf_counter() - started)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu_seconds, started = _cpu_seconds(), time.perf_counter()
    before.record()
    action()
    after.record()
    torch.cuda.synchronize()
    gpu_seconds = before.elapsed_time(after) / 1000
    return Cost(_cpu_seconds() - cpu_seconds, time.perf_counter() - started, gpu_seconds)


def in_rounds(
    actions: Mapping[str, Callable[[], object]], rounds: int, before: Mapping[str, Callable[[], object]] | None = None
) -> dict[str, list[Cost]]:
    """Return the cost of each action in each round; every round runs all of them and begins with another one.

    What disturbs the machine for a while so disturbs all of them, and ratios within a round hold. ``before`` has what
    is to run ahead of an action and does not count.
    """
    names = list(actions)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if before is not None:
                before[name]()
            costs[name].append(cost_of(actions[name]))
    return costs


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute with one thread, so that CPU time is what one core takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
