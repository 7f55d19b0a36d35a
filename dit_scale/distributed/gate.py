"""Whether an update happens: judged by the gradient norm that all ranks see, before a weight has moved.

Knows how DeepSpeed discards a step whose gradient overflows, and has it discard others in the same way.
Written for DeepSpeed 0.19.8; `tests/distributed` holds it to that at stages 0 to 3.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class UpdateGate:
    """Stands before an engine's optimizer step; updates with a norm above ``limit`` or without one do not pass."""

    def __init__(self, engine: Any):
        self._engine = engine
        self._stage: int = engine.zero_optimization_stage()
        self.limit = math.inf
        """Longest gradient that passes; below 0 none does."""
        self.norm = 0.0
        """Of the last gradient, over all parameters and ranks, before clipping."""
        if self._stage in (1, 2):
            self._offloaded_norm = engine.optimizer.scaled_global_norm
            engine.optimizer.scaled_global_norm = self._judged_norm
            engine.optimizer.check_overflow = lambda **_: None  # a gradient that is not finite has no finite norm
        elif self._stage == 3:
            self._norms_of_stage_3 = engine.optimizer._get_norm_groups
            engine.optimizer._get_norm_groups = self._judged_norms

    def step(self) -> bool:
        """Take the engine's step at the end of a batch; return whether the weights were updated."""
        if self._stage == 0:
            gradients = [parameter.grad for parameter in self._engine.module.parameters()]
            has_passed = self._judge(nn.utils.get_total_norm([grad for grad in gradients if grad is not None]))
            optimizer = self._engine.optimizer
            take_step = optimizer.step
            if not has_passed:
                optimizer.step = lambda *_, **__: None  # gradients are cleared all the same
            self._engine.step()
            optimizer.step = take_step
            return has_passed
        self.norm = math.inf  # where DeepSpeed finds an overflow before it asks for the norm
        self._engine.step()
        return not self._engine.optimizer.overflow

    def _judge(self, norm: Tensor) -> bool:
        self.norm = float(norm)
        return math.isfinite(self.norm) and 0.0 <= self.norm <= self.limit

    def _judged_norm(self) -> Tensor:
        """Return the norm in host memory, where DeepSpeed reads it again, or -1, its sign of one not to be used."""
        norm: Tensor = self._offloaded_norm() if self._engine.optimizer.cpu_offload else self._norm()
        return torch.tensor(self.norm if self._judge(norm) else -1.0)

    def _norm(self) -> Tensor:
        """Return the norm over all ranks' parts of the gradient; DeepSpeed's own copies each to fp64 for it."""
        parts = [part for group in self._engine.optimizer.averaged_gradients.values() for part in group]
        norms = torch.stack(torch._foreach_norm(parts, 2, dtype=torch.float32))
        square = norms.double().square().sum()
        dist.all_reduce(square)
        return square.sqrt().float()

    def _judged_norms(self) -> list[Tensor]:
        """Return the norms of groups of parameters, or -1 for each."""
        norms: list[Tensor] = self._norms_of_stage_3()
        whole = torch.linalg.vector_norm(torch.stack([torch.as_tensor(norm).float() for norm in norms]))
        if any(float(norm) < 0 for norm in norms):  # the sign again
            whole = torch.full_like(whole, math.inf)
        return norms if self._judge(whole) else [torch.full_like(torch.as_tensor(norm), -1.0) for norm in norms]
