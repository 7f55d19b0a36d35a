"""Whether an update happens: judged by the gradient norm that all ranks see, before a weight moves.

The device judges, and the host need not wait for it: the optimizer reads there whether to leave everything as it is,
and by how much to shorten the gradient, as a fused Adam does under a gradient scaler (`dit_scale.optim` holds others to
the same). DeepSpeed is told of neither.
"""

import math
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dit_scale.distributed.transfers import Readback

NOTHING_PASSES = -1.0
"""The limit under which an update is discarded whatever its norm."""


class Verdict:
    """What became of an update; asking waits until the device has judged it."""

    def __init__(self, norm: Tensor, is_discarded: Tensor):
        """Both are fp32 [] on the device that judged; ``is_discarded`` is 1 or 0."""
        self.norm_there, self.is_discarded_there = norm, is_discarded
        self._numbers = Readback(torch.stack((norm, is_discarded)))

    @property
    def norm(self) -> float:
        """Of the gradient, over all parameters and ranks, before clipping."""
        return self._read[0]

    @property
    def was_updated(self) -> bool:
        """Whether weights and moments have moved; if not, they are what they were, to the bit."""
        return not self._read[1]

    @cached_property
    def _read(self) -> list[float]:
        return self._numbers.read()


class UpdateGuard:
    """Stands before an engine's optimizer step; updates with a norm above a limit or without one do not pass."""

    def __init__(self, engine: Any, max_grad_norm: float | None = None):
        """Gradients longer than ``max_grad_norm`` are shortened to it."""
        self._engine, self._max_grad_norm = engine, max_grad_norm
        self._stage: int = engine.zero_optimization_stage()
        self._optimizer: Any = getattr(engine.optimizer, "optimizer", engine.optimizer)
        is_offloaded = engine.zero_offload_optimizer() is not None
        self.device: torch.device = torch.device("cpu") if is_offloaded else engine.device
        """Which judges: that of the optimizer's state."""
        self._limit: float | Tensor = math.inf
        self._verdict: Verdict | None = None
        if self._stage in (1, 2):
            self._norm_of_deepspeed = engine.optimizer.scaled_global_norm
            engine.optimizer.scaled_global_norm = self._judge
            engine.optimizer.check_overflow = lambda **_: None  # a gradient that is not finite has no finite norm
        elif self._stage == 3:
            self._norms_of_stage_3 = engine.optimizer._get_norm_groups
            engine.optimizer._get_norm_groups = lambda: [self._judge()]

    def step(self, limit: float | Tensor = math.inf) -> Verdict:
        """Take the engine's step at the end of a batch, unless the norm is above ``limit`` (collective).

        A limit that only the device knows is a number [] there.
        """
        self._limit = limit
        if self._stage == 0:
            self._judge()
        self._engine.step()
        assert self._verdict is not None, "DeepSpeed did not ask for the norm"
        verdict, self._verdict = self._verdict, None
        return verdict

    def _judge(self) -> float:
        """Judge the gradient, tell the optimizer, and return a norm for DeepSpeed: one with which nothing is wrong."""
        norm = self._norm().to(self.device)
        limit = self._limit.to(norm.dtype) if isinstance(self._limit, Tensor) else self._limit
        passes = torch.isfinite(norm) & (norm <= limit)
        self._optimizer.found_inf = (~passes).float()
        if self._max_grad_norm:
            scale = (norm + 1e-6) / self._max_grad_norm  # as PyTorch's clipping has it
            self._optimizer.grad_scale = scale.clamp(min=1.0)
        self._verdict = Verdict(norm, self._optimizer.found_inf)
        return 0.0

    def _norm(self) -> Tensor:
        """Return the norm over all parameters and ranks, fp32 []."""
        if self._stage == 0:
            return nn.utils.get_total_norm([p.grad for p in self._engine.module.parameters() if p.grad is not None])
        if self._stage == 3:
            norms = torch.stack([torch.as_tensor(norm).float() for norm in self._norms_of_stage_3()])
            norms = torch.where(norms < 0, math.inf, norms)  # DeepSpeed's sign of one that is not finite
            return torch.linalg.vector_norm(norms)
        if self._engine.optimizer.cpu_offload:
            norm: Tensor = self._norm_of_deepspeed()
            return norm
        # DeepSpeed's own copies each part of the gradient to fp64 for it.
        parts = [part for group in self._engine.optimizer.averaged_gradients.values() for part in group]
        norms = torch.stack(torch._foreach_norm(parts, 2, dtype=torch.float32))
        square = norms.double().square().sum()
        dist.all_reduce(square)
        return square.sqrt().float()
