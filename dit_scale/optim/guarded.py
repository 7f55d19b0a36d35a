"""Optimizers that know no verdict, held to one.

A fused Adam reads ``found_inf`` and ``grad_scale`` on the device. Of any other optimizer the numbers are copied before
its update, and put back on the device where the verdict says so: the host waits for nothing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from dit_scale.optim.description import begin_state
from dit_scale.optim.whole import WholeMatrices


class Part(NamedTuple):
    """An optimizer of some of the parameters."""

    optimizer: Optimizer
    reads_verdict: bool
    """Whether it leaves all as it is by itself where the verdict says so."""
    needs_whole: bool
    """Whether it updates whole matrices alone."""


class GuardedOptimizer(Optimizer):
    """Several optimizers as one, all of which leave everything as it was where an update is to be discarded."""

    def __init__(self, parts: Sequence[Part]):
        """Groups and state are shared with the parts."""
        super().__init__([group for part in parts for group in part.optimizer.param_groups], {})
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None
        self.whole: WholeMatrices | None = None
        """What puts matrices together, where each group's parameters have become one flat part of a rank."""
        self._parts = parts
        for part in parts:
            part.optimizer.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update, unless ``found_inf`` is not 0, with gradients divided by ``grad_scale``."""
        for part in self._parts:
            if part.reads_verdict:
                optimizer: Any = part.optimizer
                optimizer.found_inf, optimizer.grad_scale = self.found_inf, self.grad_scale
                self._take_step(part)
            else:
                self._step_and_put_back(part)

    def _take_step(self, part: Part) -> None:
        if part.needs_whole and self.whole is not None:
            self.whole.update(part.optimizer)
        else:
            part.optimizer.step()

    def _step_and_put_back(self, part: Part) -> None:
        before = []
        for group in part.optimizer.param_groups:
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                begin_state(self.state[parameter], parameter, group)
                state = {kind: value.clone() for kind, value in self.state[parameter].items()}
                before.append((parameter, parameter.clone(), state))
                if self.grad_scale is not None:
                    parameter.grad.div_(self.grad_scale)
        self._take_step(part)
        if self.found_inf is None:
            return
        passes = self.found_inf == 0.0
        for parameter, weights, state in before:
            parameter.copy_(torch.where(passes, parameter, weights))
            for kind, value in self.state[parameter].items():
                value.copy_(torch.where(passes, value, state[kind]))
