"""Noise -> latent: latent ``i`` depends on (seed, i), its label and the settings, and on nothing else."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.config import SampleConfig, SamplingConfig
from dit_scale.diffusion import Objective, choose_solver, guided
from dit_scale.diffusion.guidance import Interval
from dit_scale.diffusion.losses import Denoiser
from dit_scale.diffusion.solvers import OnStep, Solver, options_of
from dit_scale.draws import Stream
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT

EVERYWHERE: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class SamplingSettings(SampleConfig):
    """How noise becomes a latent, whichever command asks."""

    @classmethod
    def of(cls, config: SamplingConfig, seed: int) -> "SamplingSettings":
        """Take what a configuration, or a command's options, say."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(SamplingConfig)}, seed=seed)

    def check(self, objective: Objective, channels: int, out_channels: int, has_null: bool) -> None:
        """Raise InputError where something does not fit the objective, the latent or the model.

        Tried out: a latent of [1, C, 1, 1] is drawn from a network of zeros.
        """

        def zeros(noised_latent: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
            return noised_latent.new_zeros(len(noised_latent), out_channels, 1, 1)

        only = torch.zeros(1, dtype=torch.long)
        latent = _draw(zeros, only, only if has_null else None, objective, (channels, 1, 1), only, self)
        if not torch.isfinite(latent).all():
            options = ", ".join(f"{name}={value:g}" for name, value in self.solver_options.items()) or "no options"
            raise InputError(
                f"solver '{self.name_of_solver(objective)}' with {options} and {self.num_sampling_steps} steps gives "
                f"numbers that are not finite; give other options, or another number of steps"
            )

    def solver_for(self, objective: Objective) -> Solver:
        """Return the solver with its options; raises InputError where something does not fit the objective."""
        solver = choose_solver(self.solver, objective, **self.solver_options)
        if self.guidance_interval != EVERYWHERE and self.name_of_solver(objective) == "dopri5":
            raise InputError(
                "a guidance interval makes the flow jump, at which solver 'dopri5' takes ever smaller steps; "
                "give a solver with fixed steps such as 'heun', or no interval"
            )
        return solver

    def name_of_solver(self, objective: Objective) -> str:
        """Return the solver's name, the objective's default where none is given."""
        return self.solver or objective.default_solver

    def described(self, objective: Objective) -> dict[str, object]:
        """Return all that others need to repeat it, for a protocol."""
        name = self.name_of_solver(objective)
        is_guided = self.cfg_scale != 1
        return {
            "solver": name,
            "solver_options": options_of(name) | self.solver_options,
            "num_sampling_steps": self.num_sampling_steps,
            "cfg_scale": self.cfg_scale,
            "guidance_channels": (self.guidance_channels or "all") if is_guided else None,
            "guidance_interval": list(self.guidance_interval) if is_guided else None,
            "seed": self.seed,
        }


@torch.no_grad()
def sample_latents(
    model: DiT,
    objective: Objective,
    latents: LatentSpec,
    condition: Tensor,
    indices: Tensor,
    settings: SamplingSettings,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return final latents [N, C, H, W] for the model's condition (labels [N]) and image indices [N]."""

    def denoiser(noised_latent: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        return model(noised_latent, timestep, condition).float()

    nulls = model.condition.nulls(condition)
    return _draw(denoiser, condition, nulls, objective, latents.shape, indices, settings, on_step)


def _draw(
    denoiser: Denoiser,
    condition: Tensor,
    nulls: Tensor | None,
    objective: Objective,
    shape: tuple[int, ...],
    indices: Tensor,
    settings: SamplingSettings,
    on_step: OnStep | None = None,
) -> Tensor:
    def step_noise(step: int) -> Tensor:
        return draws.normal(settings.seed, Stream.STEP_NOISE, indices, shape, counter_offset=step)

    return settings.solver_for(objective)(
        objective,
        guided(
            denoiser,
            condition,
            nulls,
            settings.cfg_scale,
            settings.guidance_channels,
            settings.guidance_interval,
            objective.noise_levels,
        ),
        draws.normal(settings.seed, Stream.INITIAL_NOISE, indices, shape),
        settings.num_sampling_steps,
        step_noise,
        on_step,
    )
