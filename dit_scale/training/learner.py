"""The network in training on this rank: a step's gradient, its update, and where a step goes wrong."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dit_scale.data.loader import Batch
from dit_scale.training.loss import LossFunction
from dit_scale.training.state import TrainingState
from dit_scale.training.step import Losses, compute_gradient
from dit_scale.zero.batches import BatchPlan
from dit_scale.zero.engine import set_learning_rate
from dit_scale.zero.update_guard import NOTHING_PASSES, UpdateGuard, Verdict


@dataclass(frozen=True)
class Learner:
    """What a step works on; the host waits for nothing that it does."""

    plan: BatchPlan
    loss_function: LossFunction
    engine: Any
    guard: UpdateGuard
    state: TrainingState

    def gradient(self, batch: Batch) -> Losses:
        """Leave a batch's gradient in the engine (collective)."""
        loss_function = self.loss_function.at(int(batch.positions[0]))
        return compute_gradient(self.engine, loss_function, batch, self.plan)

    def update(self, learning_rate: float, limit: float | Tensor) -> Verdict:
        """Move weights and moments, unless the gradient's norm is above ``limit`` or none at all (collective)."""
        set_learning_rate(self.engine, learning_rate)
        return self.guard.step(limit)

    def offender_in(self, batch: Batch) -> str | None:
        """Compute a batch's gradient once more, apply nothing, and name the first module where it is not finite.

        Collective; None where all is finite on this rank.
        """
        with watched(self.engine.module) as offender:
            self.gradient(batch)
            self.guard.step(NOTHING_PASSES)
        return offender()


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
