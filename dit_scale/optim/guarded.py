"""Optimizers that know no verdict, held to one.

A fused Adam reads ``found_inf`` and ``grad_scale`` on the device. Of any other optimizer the numbers are copied before
its update, and put back on the device where the verdict says so: the host waits for nothing.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dit_scale.optim.description import begin_state


class GuardedOptimizer(Optimizer):
    """Several optimizers as one, all of which leave everything as it was where an update is to be discarded."""

    def __init__(self, parts: list[tuple[Optimizer, bool]]):
        """Each part comes with whether it reads the verdict itself; groups and state are shared with the parts."""
        super().__init__([group for part, _ in parts for group in part.param_groups], {})
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None
        self._parts = parts
        for part, _ in parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update, unless ``found_inf`` is not 0, with gradients divided by ``grad_scale``."""
        for part, reads_verdict in self._parts:
            if reads_verdict:
                part.found_inf, part.grad_scale = self.found_inf, self.grad_scale  # type: ignore[attr-defined]
                part.step()
            else:
                self._step_and_put_back(part)

    def _step_and_put_back(self, part: Optimizer) -> None:
        before = []
        for group in part.param_groups:
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                begin_state(self.state[parameter], parameter, group)
                state = {kind: value.clone() for kind, value in self.state[parameter].items()}
                before.append((parameter, parameter.clone(), state))
                if self.grad_scale is not None:
                    parameter.grad.div_(self.grad_scale)
        part.step()
        if self.found_inf is None:
            return
        passes = self.found_inf == 0.0
        for parameter, weights, state in before:
            parameter.copy_(torch.where(passes, parameter, weights))
            for kind, value in self.state[parameter].items():
                value.copy_(torch.where(passes, value, state[kind]))
