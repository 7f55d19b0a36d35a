"""Solvers of Gaussian diffusion, over the steps that a respacing keeps."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dit_scale.diffusion.gaussian import GaussianDiffusion
from dit_scale.diffusion.losses import LabelledDenoiser
from dit_scale.diffusion.schedule import Tables
from dit_scale.diffusion.solvers.interface import OnStep, StepNoise, report
from dit_scale.errors import InputError


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
        report(on_step, done, num_sampling_steps, latent)
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
    if not 0 <= eta <= 1:
        raise InputError(f"eta {eta:g} is not in [0, 1]; 0 is DDIM, and 1 adds noise as DDPM does")
    if eta > 0 and step_noise is None:
        raise InputError(f"ddim with eta {eta} adds noise but was given none; pass step_noise or set eta to 0")
    latent = noise.float()
    for done, at in enumerate(_steps_from_noisiest(objective, f"ddim{num_sampling_steps}", latent)):
        x0, epsilon = objective.x0_and_epsilon(denoiser(latent, at.timestep.flatten()), latent, at)
        std = eta * torch.exp(0.5 * at.log_beta) * at.previous_sigma / at.sigma  # eq. 16
        latent = at.previous_alpha * x0 + torch.sqrt(at.previous_sigma**2 - std**2) * epsilon
        if eta > 0 and step_noise is not None:
            latent = latent + std * step_noise(done).float()
        report(on_step, done, num_sampling_steps, latent)
    return latent


@torch.no_grad()
def dpm_solver(
    objective: GaussianDiffusion,
    denoiser: LabelledDenoiser,
    noise: Tensor,
    num_sampling_steps: int,
    step_noise: StepNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order from the last two estimates of x0, one pass a step: DPM-Solver++(2M) (arXiv 2211.01095, alg. 2)."""
    latent = noise.float()
    last_x0, last_length = None, None
    for done, at in enumerate(_steps_from_noisiest(objective, str(num_sampling_steps), latent)):
        x0, _ = objective.x0_and_epsilon(denoiser(latent, at.timestep.flatten()), latent, at)
        # The step's length in half the logarithm of the signal-to-noise ratio; infinite in the last, to sigma = 0.
        length = torch.log(at.previous_alpha / at.previous_sigma) - torch.log(at.alpha / at.sigma)
        estimate = x0
        if last_x0 is not None and last_length is not None and done < num_sampling_steps - 1:
            estimate = x0 + (x0 - last_x0) * length / last_length / 2
        latent = at.previous_sigma / at.sigma * latent - at.previous_alpha * torch.expm1(-length) * estimate
        last_x0, last_length = x0, length
        report(on_step, done, num_sampling_steps, latent)
    return latent


def _steps_from_noisiest(objective: GaussianDiffusion, respacing: str, latent: Tensor) -> Iterator[Tables]:
    """Yield the tables of each step that is kept, last step first, for every sample of ``latent``."""
    tables = objective.shortened_schedule(respacing).tables(latent.device)
    for step in reversed(range(len(tables.timestep))):
        yield tables.at(torch.full((len(latent),), step, device=latent.device))
