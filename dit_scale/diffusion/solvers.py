"""Solvers: from noise to a latent; interchangeable pure functions of one signature.

Each takes an objective that names it among its ``solvers``; a denoiser ``(latent, time) -> output`` whose
labels and guidance are settled; the initial noise [N, C, S, S]; the number of steps; ``step_noise(step)``, the
noise of each step counted from the noisiest, or None where the solver needs none; and ``on_step(done, total)``,
called after each step. All keep their state in fp32.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from dit_scale.diffusion.flow import FlowMatching
from dit_scale.diffusion.gaussian import GaussianDiffusion
from dit_scale.diffusion.losses import LabelledDenoiser
from dit_scale.diffusion.objective import Objective
from dit_scale.diffusion.schedule import Tables
from dit_scale.errors import InputError, nearest

StepNoise = Callable[[int], Tensor]
OnStep = Callable[[int, int], None]


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


@torch.no_grad()
def ddpm(
    objective: GaussianDiffusion,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral sampling over evenly respaced steps: DDPM (arXiv 2006.11239), algorithm 2."""
    if step_noise is None:
        raise InputError("solver 'ddpm' adds noise at every step but was given none; pass step_noise or use 'ddim'")
    latent = noise.float()
    for done, at in enumerate(_steps_from_noisiest(objective, str(num_sampling_steps), latent)):
        posterior = objective.posterior(denoiser(latent, at.timestep.flatten()), latent, at)
        latent = posterior.mean
        if done < num_sampling_steps - 1:  # the last mean is the sample
            latent = latent + torch.exp(0.5 * posterior.log_variance) * step_noise(done).float()
        _report(on_step, done, num_sampling_steps)
    return latent


@torch.no_grad()
def ddim(
    objective: GaussianDiffusion,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
    *,
    eta: float = 0.0,
) -> Tensor:
    """Implicit sampling over every s-th step, deterministic for ``eta`` 0: DDIM (arXiv 2010.02502), eq. 12."""
    if eta > 0 and step_noise is None:
        raise InputError(f"ddim with eta {eta} adds noise but was given none; pass step_noise or set eta to 0")
    latent = noise.float()
    for done, at in enumerate(_steps_from_noisiest(objective, f"ddim{num_sampling_steps}", latent)):
        x0, epsilon = objective.x0_and_epsilon(denoiser(latent, at.timestep.flatten()), latent, at)
        std = eta * torch.exp(0.5 * at.log_beta) * at.previous_sigma / at.sigma  # eq. 16
        latent = at.previous_alpha * x0 + torch.sqrt(at.previous_sigma**2 - std**2) * epsilon
        if eta > 0 and step_noise is not None:
            latent = latent + std * step_noise(done).float()
        _report(on_step, done, num_sampling_steps)
    return latent


@torch.no_grad()
def euler(
    objective: FlowMatching,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """First order: follow the velocity at the start of each step; one pass a step."""
    latent = noise.float()
    for done, (time, next_time) in enumerate(_times_from_noisiest(num_sampling_steps, latent)):
        latent = latent + _length(time, next_time) * objective.velocity(denoiser, latent, time)
        _report(on_step, done, num_sampling_steps)
    return latent


@torch.no_grad()
def midpoint(
    objective: FlowMatching,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order: follow the velocity half a step ahead; two passes a step."""
    latent = noise.float()
    for done, (time, next_time) in enumerate(_times_from_noisiest(num_sampling_steps, latent)):
        length = _length(time, next_time)
        halfway = latent + 0.5 * length * objective.velocity(denoiser, latent, time)
        latent = latent + length * objective.velocity(denoiser, halfway, (time + next_time) / 2)
        _report(on_step, done, num_sampling_steps)
    return latent


@torch.no_grad()
def heun(
    objective: FlowMatching,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order: follow the mean of the velocities at both ends of each step; two passes a step."""
    latent = noise.float()
    for done, (time, next_time) in enumerate(_times_from_noisiest(num_sampling_steps, latent)):
        length = _length(time, next_time)
        start = objective.velocity(denoiser, latent, time)
        end = objective.velocity(denoiser, latent + length * start, next_time)
        latent = latent + length * (start + end) / 2
        _report(on_step, done, num_sampling_steps)
    return latent


SOLVERS: dict[str, Solver] = {"ddpm": ddpm, "ddim": ddim, "euler": euler, "midpoint": midpoint, "heun": heun}
"""By name; an objective's ``solvers`` says which of them fit it."""


def choose_solver(name: str | None, objective: Objective) -> Solver:
    """Return the solver ``name``, or the objective's default; InputError where it does not fit."""
    name = name or objective.default_solver
    if name not in SOLVERS:
        raise InputError(f"solver {name!r} is unknown{nearest(name, objective.solvers)}")
    if name not in objective.solvers:
        fitting = ", ".join(objective.solvers)
        raise InputError(f"solver {name!r} does not fit {type(objective).__name__}; choose one of {fitting}")
    return SOLVERS[name]


def _steps_from_noisiest(objective: GaussianDiffusion, respacing: str, latent: Tensor) -> Iterator[Tables]:
    """Yield the tables of each step that is kept, last step first, for every sample of ``latent``."""
    tables = objective.shortened_schedule(respacing).tables(latent.device)
    for step in reversed(range(len(tables.timestep))):
        yield tables.at(torch.full((len(latent),), step, device=latent.device))


def _times_from_noisiest(num_sampling_steps: int, latent: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the start and the end of each step from t = 1 to 0; both [N]."""
    if num_sampling_steps < 1:
        raise InputError(f"num_sampling_steps {num_sampling_steps} is less than 1; 50 is a good start")
    times = torch.linspace(1, 0, num_sampling_steps + 1, device=latent.device)  # [steps + 1]
    return pairwise(times[:, None].expand(-1, len(latent)))  # pairs of [N]


def _length(time: Tensor, next_time: Tensor) -> Tensor:
    return (next_time - time)[:, None, None, None]


def _report(on_step: OnStep | None, done: int, total: int) -> None:
    if on_step is not None:
        on_step(done + 1, total)
