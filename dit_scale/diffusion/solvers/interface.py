"""The one signature of all solvers."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from dit_scale.diffusion.losses import LabelledDenoiser

StepNoise = Callable[[int], Tensor]
"""``step -> noise`` [N, C, S, S] of each step, counted from the noisiest."""

OnStep = Callable[[int, int, Tensor], None]
"""Called after each step with the steps done, the steps in all and the latent [N, C, S, S]."""


class Solver(Protocol):
    """The one signature."""

    def __call__(
        self,
        objective: Any,
        denoiser: LabelledDenoiser,
        noise: Tensor,
        num_sampling_steps: int,
        step_noise: StepNoise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return a latent [N, C, S, S] in fp32."""


def report(on_step: OnStep | None, done: int, total: int, latent: Tensor) -> None:
    """Tell who asked that step ``done``, counted from 0, has left ``latent``."""
    if on_step is not None:
        on_step(done + 1, total, latent)
