"""Solvers of flow matching with steps fixed beforehand; t runs from noise (1) to the latent (0).

``time_shift`` s moves the steps along t' = s t / (1 + (s - 1) t) (arXiv 2403.03206, eq. 23): above 1 more of them
lie near the noise, below 1 near the latent; without one it is the objective's, with which times were drawn in training.
``end_time`` is where the steps end, and is moved with them; without one it is 0, the latent.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from dit_scale.diffusion.flow import FlowMatching, shifted
from dit_scale.diffusion.losses import LabelledDenoiser
from dit_scale.diffusion.solvers.interface import OnStep, StepNoise, report
from dit_scale.errors import InputError


@torch.no_grad()
def euler(
    objective: FlowMatching,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
    *,
    time_shift: float | None = None,
    end_time: float | None = None,
) -> Tensor:
    """First order: follow the velocity at the start of each step; one pass a step."""
    latent = noise.float()
    for done, (time, next_time) in enumerate(_steps(objective, num_sampling_steps, latent, time_shift, end_time)):
        latent = latent + _length(time, next_time) * objective.velocity(denoiser, latent, time)
        report(on_step, done, num_sampling_steps, latent)
    return latent


@torch.no_grad()
def midpoint(
    objective: FlowMatching,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
    *,
    time_shift: float | None = None,
    end_time: float | None = None,
) -> Tensor:
    """Second order: follow the velocity half a step ahead; two passes a step."""
    latent = noise.float()
    for done, (time, next_time) in enumerate(_steps(objective, num_sampling_steps, latent, time_shift, end_time)):
        length = _length(time, next_time)
        halfway = latent + 0.5 * length * objective.velocity(denoiser, latent, time)
        latent = latent + length * objective.velocity(denoiser, halfway, (time + next_time) / 2)
        report(on_step, done, num_sampling_steps, latent)
    return latent


@torch.no_grad()
def heun(
    objective: FlowMatching,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
    *,
    time_shift: float | None = None,
    end_time: float | None = None,
) -> Tensor:
    """Second order: follow the mean of the velocities at both ends of each step; two passes a step."""
    latent = noise.float()
    for done, (time, next_time) in enumerate(_steps(objective, num_sampling_steps, latent, time_shift, end_time)):
        length = _length(time, next_time)
        start = objective.velocity(denoiser, latent, time)
        end = objective.velocity(denoiser, latent + length * start, next_time)
        latent = latent + length * (start + end) / 2
        report(on_step, done, num_sampling_steps, latent)
    return latent


@torch.no_grad()
def sde(
    objective: FlowMatching,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
    *,
    time_shift: float | None = None,
    diffusion_norm: float = 1.0,
    last_step_size: float = 0.04,
) -> Tensor:
    """Euler-Maruyama on the reverse SDE, w = 2 ``diffusion_norm`` t, the last step without noise: SiT's sampler.

    arXiv 2401.08740, eq. 5 and section 3.3, and the published settings: w proportional to sigma, and a last step of
    ``last_step_size`` in t that follows the drift alone.
    """
    if step_noise is None:
        raise InputError("solver 'sde' adds noise at every step but was given none; pass step_noise or use 'heun'")
    if diffusion_norm < 0:
        raise InputError(f"diffusion_norm {diffusion_norm:g} is below 0; 1 is the published value, 0 adds no noise")
    if not 0 < last_step_size < 1:
        raise InputError(f"last_step_size {last_step_size} is not between 0 and 1; 0.04 is the published value")
    latent = noise.float()
    steps = _steps(objective, num_sampling_steps, latent, time_shift, last_step_size=last_step_size)
    for done, (time, next_time) in enumerate(steps):
        t = time[:, None, None, None]
        strength = diffusion_norm * t
        velocity = objective.velocity(denoiser, latent, time)
        score = -(latent + (1 - t) * velocity) / t  # eq. 9 for the straight path
        latent = latent + _length(time, next_time) * (velocity - strength * score)
        if done < num_sampling_steps - 1:
            std = torch.sqrt(-2 * strength * _length(time, next_time))
            latent = latent + std * step_noise(done).float()
        report(on_step, done, num_sampling_steps, latent)
    return latent


def _steps(
    objective: FlowMatching,
    num_sampling_steps: int,
    latent: Tensor,
    time_shift: float | None,
    end_time: float | None = None,
    last_step_size: float | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the start and the end of each step from t = 1 to 0, or to the shifted ``end_time``; both [N]."""
    if num_sampling_steps < 1:
        raise InputError(f"num_sampling_steps {num_sampling_steps} is less than 1; 50 is a good start")
    time_shift = objective.time_shift if time_shift is None else time_shift
    if time_shift <= 0:
        raise InputError(f"time_shift {time_shift} is not above 0; 1 leaves the steps where they are")
    end_time = 0.0 if end_time is None else end_time
    if not 0 <= end_time < 1:
        raise InputError(f"end_time {end_time:g} is not in [0, 1); 0 ends at the latent, and RAE's steps end at 0.001")
    if last_step_size is None:
        times = torch.linspace(1, end_time, num_sampling_steps + 1, device=latent.device)  # [steps + 1]
    else:
        before = torch.linspace(1, last_step_size, num_sampling_steps, device=latent.device)
        times = torch.cat([before, before.new_zeros(1)])  # [steps + 1]
    return pairwise(shifted(times, time_shift)[:, None].expand(-1, len(latent)))  # pairs of [N]


def _length(time: Tensor, next_time: Tensor) -> Tensor:
    return (next_time - time)[:, None, None, None]
