"""Steps whose update must not happen: recognised, explained, written down and, when they come again, skipped."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dit_scale.config import TrainSection
from dit_scale.distributed.runtime import World
from dit_scale.documents import parsed_or_none
from dit_scale.errors import NonFinite
from dit_scale.supervision.history import Step
from dit_scale.training.metrics import Lines
from dit_scale.zero.update_guard import NOTHING_PASSES

FILE_NAME = "bad-steps.jsonl"

_WINDOW_STEPS = 1000
_NORMS = 100
_FEWEST_NORMS = 20
"""Updates before which nothing is called a spike."""


class BadSteps:
    """Which steps of a run are bad; the same on every rank."""

    def __init__(self, run_dir: Path, settings: TrainSection, world: World, grad_norms: list[float]):
        """Collective; ``grad_norms`` are those that a checkpoint kept."""
        self._path, self._settings, self._world = run_dir / FILE_NAME, settings, world
        self._norms: deque[float] = deque(grad_norms, maxlen=_NORMS)
        self._lines: Lines | None = None
        steps = [_steps_in(self._path) if world.is_rank_zero else []]
        dist.broadcast_object_list(steps, src=0)
        self._known = set(steps[0])

    def limit_at(self, step: int) -> float:
        """Return the gradient norm above which the step is bad: none passes where it is known to be."""
        if step in self._known:
            return NOTHING_PASSES
        factor = self._settings.spike_factor
        return factor * median(self._norms) if factor and len(self._norms) >= _FEWEST_NORMS else math.inf

    def is_known(self, step: int) -> bool:
        """Whether a step was found to be bad before."""
        return step in self._known

    def note_good(self, grad_norm: float) -> None:
        """Remember an update's gradient norm, to measure spikes against."""
        self._norms.append(grad_norm)

    def go_back(self, grad_norms: list[float]) -> None:
        """Go back to a checkpoint's norms; bad steps stay known."""
        self._norms = deque(grad_norms, maxlen=_NORMS)

    @property
    def grad_norms(self) -> list[float]:
        """What a checkpoint must keep, so that spikes are told alike after it."""
        return list(self._norms)

    def record(self, step: int, limit: float, grad_norm: float, offender: str | None, suspects: list[str]) -> str:
        """Write down a bad step and return what is wrong with it (collective).

        ``offender`` and ``suspects`` are this rank's findings. Raises Failure where there are too many such steps.
        """
        findings: list[Any] = [None] * self._world.world_size
        dist.all_gather_object(findings, (offender, suspects))
        reason = (
            f"the gradient norm {grad_norm:.3g} is above {limit:.3g}, {self._settings.spike_factor:g} times the median"
            if math.isfinite(grad_norm)
            else "the loss or the gradient is not finite"
        )
        offenders = {f"rank {rank}": found for rank, (found, _) in enumerate(findings) if found is not None}
        keys = [key for _, keys in findings for key in keys]
        if self._world.is_rank_zero:
            entry = {"step": step, "reason": reason, "grad_norm": grad_norm if math.isfinite(grad_norm) else None}
            self._lines = self._lines or Lines(self._path)
            self._lines.write(entry | {"modules": offenders, "keys": keys})
            self._lines.sync()
        self._known.add(step)
        recent = sum(step - _WINDOW_STEPS < known <= step for known in self._known)
        where = next(iter(offenders.values()), "no single module")
        sentence = f"step {step}: {reason}; first in {where}; records {_shortened(keys)} ({self._path.name} has all)"
        if recent > self._settings.max_bad_steps:
            raise NonFinite(
                f"{sentence}; that makes {recent} bad steps among the last {_WINDOW_STEPS}, where "
                f"train.max_bad_steps={self._settings.max_bad_steps}; look at the data and the learning rate, then go "
                f"on from the last checkpoint"
            )
        return sentence


@contextmanager
def watched(model: nn.Module) -> Iterator[Callable[[], str | None]]:
    """Watch a pass through a model; give a function that names the first module where a number is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def after_forward(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            if not found and not _is_finite(output):
                came_in = any(isinstance(value, Tensor) and not _is_finite(value) for value in inputs)
                found.append(f"forward of {name}" + (", whose input is not finite already" if came_in else ""))
            if output.requires_grad:
                output.register_hook(after_backward)

        def after_backward(gradient: Tensor) -> None:
            if not found and not _is_finite(gradient):
                found.append(f"backward of {name}")

        return after_forward

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield lambda: found[0] if found else None
    finally:
        for hook in hooks:
            hook.remove()


def _is_finite(values: Tensor) -> bool:
    return not values.is_floating_point() or bool(torch.isfinite(values).all())


def _steps_in(path: Path) -> list[int]:
    if not path.is_file():
        return []
    lines = (parsed_or_none(line, Step) for line in path.read_bytes().splitlines())
    return [line["step"] for line in lines if line is not None]  # one torn by a kill: the step comes again


def _shortened(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (", …" if len(keys) > 8 else "")
