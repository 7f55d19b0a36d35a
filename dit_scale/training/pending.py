"""What a step leaves behind, and the line of metrics.jsonl that becomes of it once its numbers have come."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale.checkpoint import Position
from dit_scale.data.loader import Batch
from dit_scale.distributed.transfers import Readback, send
from dit_scale.supervision.phases import Phase
from dit_scale.supervision.stragglers import RankTimes
from dit_scale.training.step import Losses
from dit_scale.zero.batches import BatchPlan
from dit_scale.zero.update_guard import Verdict


class Flags(NamedTuple):
    """What a rank tells the others at the end of a step, summed over ranks."""

    num_damaged: float
    """Records set aside."""
    is_asked_to_stop: float
    wants_retry: float
    """Whether a save that failed is to be tried again."""
    cpu_seconds: float
    """That its threads took for the step."""


class Sums(NamedTuple):
    """What is summed over ranks."""

    numbers: Readback
    """The loss, Flags, the ranks' times, the terms of the loss."""
    term_names: tuple[str, ...]
    """None where the loss has a single term."""


@dataclass(frozen=True)
class PendingMetrics:
    """What a step left behind; what the device computes of it may still be on its way."""

    position: Position
    """After it."""
    batch: Batch
    losses: Tensor
    """Of each of this rank's images, [n]."""
    learning_rate: float
    limit: Tensor | float
    """The gradient norm above which it is bad."""
    verdict: Verdict
    seconds: float
    time: float
    """When it ended, in seconds since 1970."""
    sums: Sums


@dataclass(frozen=True)
class Summed:
    """A step's numbers over all ranks."""

    loss: float
    """The mean over the global batch."""
    losses: dict[str, float]
    """The same of each of its terms, where there are several."""
    flags: Flags
    times: Sequence[float]


class StepMetrics:
    """Sums what ranks know of a step, in one all_reduce, and makes a line of it."""

    def __init__(
        self,
        plan: BatchPlan,
        rank_times: RankTimes,
        flops_of_step: Callable[[int], float] | None,
        peak_flops: float | None,
        own_rates: Mapping[str, float],
    ):
        """``flops_of_step`` are an image's in a step of a number; ``peak_flops`` of all ranks, where they are known.

        ``own_rates`` are learning rates that differ from the run's, by name, as multiples of it.
        """
        self._own_rates = own_rates
        self._plan, self._rank_times = plan, rank_times
        self._flops_of_step, self._peak_flops = flops_of_step, peak_flops

    def sum_over_ranks(self, losses: Losses, flags: Flags, phase_seconds: Mapping[Phase, float]) -> Sums:
        """Begin to sum what ranks know of a step (collective)."""
        terms = losses.terms if len(losses.terms) > 1 else {}
        own = torch.cat((torch.tensor(flags), self._rank_times.own(phase_seconds)))
        own_sums = [values.sum().view(1) for values in (losses.total, *terms.values())]
        sums = torch.cat((own_sums[0], send(own, losses.total.device), *own_sums[1:]))
        return Sums(Readback(sums, dist.all_reduce(sums, async_op=True)), tuple(terms))

    def read(self, pending: PendingMetrics) -> Summed:
        """Return a step's numbers; waits for them."""
        numbers, names = pending.sums.numbers.read(), pending.sums.term_names
        first_time, first_term = 1 + len(Flags._fields), len(numbers) - len(names)
        flags = Flags(*numbers[1:first_time])
        count = max(1.0, self._plan.global_batch_size - flags.num_damaged)
        losses = {name: number / count for name, number in zip(names, numbers[first_term:], strict=True)}
        return Summed(numbers[0] / count, losses, flags, numbers[first_time:first_term])

    def line(self, pending: PendingMetrics, summed: Summed) -> dict[str, Any]:
        """Return a step's line of metrics.jsonl."""
        images_per_second = self._plan.global_batch_size / pending.seconds
        peak, step = self._peak_flops, pending.position.step
        line: dict[str, Any] = {
            "step": step,
            "time": pending.time,
            "images_seen": pending.position.images_seen,
            "loss": _or_none(summed.loss),
            "grad_norm": _or_none(pending.verdict.norm),
            "learning_rate": pending.learning_rate,
            **{name: scale * pending.learning_rate for name, scale in self._own_rates.items()},
            "step_seconds": pending.seconds,
            "cpu_seconds": summed.flags.cpu_seconds,
            "images_per_second": images_per_second,
            "mfu": images_per_second * self._flops_of_step(step) / peak if peak and self._flops_of_step else None,
        }
        if summed.losses:
            line["losses"] = {name: _or_none(value) for name, value in summed.losses.items()}
        line |= self._rank_times.metrics(summed.times)
        return line if pending.verdict.was_updated else line | {"skipped": True}

    def rank_line(self, step: int) -> dict[str, Any] | None:
        """Return the line of ranks.jsonl that follows a step, if any."""
        return self._rank_times.line(step)


class StepClock:
    """How long steps take, without what is done between them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Have a step begin now."""
        self._began = self._clock()

    def lap(self) -> float:
        """End a step: return its seconds; the next one begins."""
        began, self._began = self._began, self._clock()
        return self._began - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what is done meanwhile."""
        begun = self._clock()
        yield
        self._began += self._clock() - begun


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
