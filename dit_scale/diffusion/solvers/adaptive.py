"""A solver of flow matching that chooses the steps of each image by its own error."""

import torch
from torch import Tensor

from dit_scale.diffusion.flow import FlowMatching
from dit_scale.diffusion.losses import LabelledDenoiser
from dit_scale.diffusion.solvers.interface import OnStep, StepNoise, report
from dit_scale.errors import Failure, InputError

# Dormand and Prince (1980), RK5(4)7M: nodes, coefficients of each stage, and of the error of the fifth order.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _LEAST_FACTOR, _MOST_FACTOR = 0.9, 0.2, 10.0
_MOST_TRIALS = 2000


@torch.no_grad()
def dopri5(
    objective: FlowMatching,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
    *,
    tolerance: float = 1e-3,
) -> Tensor:
    """Fifth order with steps of each image's own length (Dormand and Prince, 1980); six passes a trial.

    A step is taken where the root mean square of its error, relative to ``tolerance`` x (1e-3 + |latent|), is at
    most 1; the first trial has the length 1 / ``num_sampling_steps``. An image does not depend on its batch: one
    that has arrived stays as it is while others go on.
    """
    if num_sampling_steps < 1:
        raise InputError(f"num_sampling_steps {num_sampling_steps} is less than 1; it sets the first step, 50 is usual")
    if tolerance <= 0:
        raise InputError(f"tolerance {tolerance} is not above 0; 1e-3 is the usual value")
    latent = noise.float()
    time = torch.ones(len(latent), device=latent.device)
    length = torch.full_like(time, 1 / num_sampling_steps)
    velocity = objective.velocity(denoiser, latent, time)
    reported = 0
    for _ in range(_MOST_TRIALS):
        length = torch.minimum(length, time)
        ahead, velocity_ahead, error = _trial(objective, denoiser, latent, time, length, velocity, tolerance)
        is_taken = error <= 1
        latent = torch.where(_wide(is_taken), ahead, latent)
        velocity = torch.where(_wide(is_taken), velocity_ahead, velocity)
        time = torch.where(is_taken, time - length, time)
        factor = (_SAFETY * error.clamp(min=1e-10) ** -0.2).clamp(_LEAST_FACTOR, _MOST_FACTOR)
        length = length * torch.where(is_taken, factor, factor.clamp(max=1.0))
        slowest = time.max().item()
        for done in range(reported, int(num_sampling_steps * (1 - slowest))):
            report(on_step, done, num_sampling_steps, latent)
            reported = done + 1
        if slowest == 0:
            return latent
        length = torch.where(time > 0, length, torch.zeros_like(length))
    raise Failure(
        f"solver 'dopri5' has not arrived after {_MOST_TRIALS} trials at tolerance {tolerance}; give a larger "
        f"tolerance, or a solver with fixed steps such as 'heun'"
    )


def _trial(
    objective: FlowMatching,
    denoiser: LabelledDenoiser,
    latent: Tensor,
    time: Tensor,
    length: Tensor,
    velocity: Tensor,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the latent and the velocity one step ahead, and the error [N] in units of what is allowed."""
    step = _wide(-length)  # t falls
    slopes, ahead = [velocity], latent
    for node, coefficients in zip(_NODES[1:], _STAGES, strict=True):
        moved = sum(c * slope for c, slope in zip(coefficients, slopes, strict=True) if c)
        ahead = latent + step * moved
        slopes.append(objective.velocity(denoiser, ahead, (time - node * length).clamp(min=0)))
    error = step * sum(c * slope for c, slope in zip(_ERROR, slopes, strict=True) if c)
    allowed = tolerance * (1e-3 + torch.maximum(latent.abs(), ahead.abs()))
    return ahead, slopes[-1], (error / allowed).square().flatten(1).mean(dim=1).sqrt()


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
