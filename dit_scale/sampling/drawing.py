"""Noise -> latent: latent ``i`` depends on (seed, i), its label and the settings, and on nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.config import SampleConfig, SamplingConfig
from dit_scale.diffusion import Objective, choose_solver, guided
from dit_scale.diffusion.guidance import Interval
from dit_scale.diffusion.losses import LabelledDenoiser
from dit_scale.diffusion.solvers import OnStep, Solver, defaults_of
from dit_scale.draws import Stream
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.sampling.weaker import Drawing, Network, is_path, pair_of

EVERYWHERE: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class SamplingSettings(SampleConfig):
    """How noise becomes a latent, whichever command asks."""

    @classmethod
    def of(cls, config: SamplingConfig, seed: int) -> "SamplingSettings":
        """Take what a configuration, or a command's options, say."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(SamplingConfig)}, seed=seed)

    def check(self, objective: Objective, model: DiT) -> None:
        """Raise InputError where something does not fit the objective or the model, whose weights are not looked at.

        Tried out: a latent of [1, C, 1, 1] is drawn from a network of zeros.
        """

        def zeros(noised: Tensor, timestep: Tensor, condition: Tensor, hidden: Sequence[Any] = (), **_: Any) -> Any:
            output = noised.new_zeros(len(noised), model.out_channels, 1, 1)
            return (output, [output] * len(hidden)) if hidden else output

        condition, only = model.condition.empty(1, "cpu"), torch.zeros(1, dtype=torch.long)
        drawing = Drawing(zeros, model, condition, only, self.cfg_scale, zeros, self.seed)
        latent = _draw(drawing, objective, (model.in_channels, 1, 1), self)
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

    @property
    def guiding_path(self) -> str | None:
        """The run or checkpoint that guides, or None."""
        return self.guide_by if self.cfg_scale != 1 and is_path(self.guide_by) else None

    def name_of_solver(self, objective: Objective) -> str:
        """Return the solver's name, the objective's default where none is given."""
        return self.solver or objective.default_solver

    def described(self, objective: Objective) -> dict[str, object]:
        """Return all that others need to repeat it, for a protocol."""
        name = self.name_of_solver(objective)
        is_guided = self.cfg_scale != 1
        return {
            "solver": name,
            "solver_options": defaults_of(name, objective) | self.solver_options,
            "num_sampling_steps": self.num_sampling_steps,
            "cfg_scale": self.cfg_scale,
            "guidance_channels": (self.guidance_channels or "all") if is_guided else None,
            "guidance_interval": list(self.guidance_interval) if is_guided else None,
            "seed": self.seed,
        } | ({"guide_by": self.guide_by} if is_guided and self.guide_by is not None else {})


@torch.no_grad()
def sample_latents(
    model: DiT,
    objective: Objective,
    latents: LatentSpec,
    condition: Tensor,
    indices: Tensor,
    settings: SamplingSettings,
    on_step: OnStep | None = None,
    other: DiT | None = None,
) -> Tensor:
    """Return final latents [N, C, H, W] for the model's condition (labels [N]) and image indices [N].

    ``other`` is the network of the run or checkpoint that ``settings.guide_by`` is the path of.
    """
    beside = None if other is None else _in_fp32(other)
    drawing = Drawing(_in_fp32(model), model, condition, indices, settings.cfg_scale, beside, settings.seed)
    return _draw(drawing, objective, latents.shape, settings, on_step)


def _in_fp32(model: DiT) -> Network:
    """Return a network that returns fp32, whatever it computes in."""

    def network(noised_latent: Tensor, timestep: Tensor, condition: Tensor, **asked: Any) -> Any:
        output = model(noised_latent, timestep, condition, **asked)
        if isinstance(output, Tensor):
            return output.float()
        return output[0].float(), [each.float() for each in output[1]]

    return network


def _draw(
    drawing: Drawing,
    objective: Objective,
    shape: tuple[int, ...],
    settings: SamplingSettings,
    on_step: OnStep | None = None,
) -> Tensor:
    def step_noise(step: int) -> Tensor:
        return draws.normal(settings.seed, Stream.STEP_NOISE, drawing.indices, shape, counter_offset=step)

    return settings.solver_for(objective)(
        objective,
        _guided(drawing, objective, settings),
        draws.normal(settings.seed, Stream.INITIAL_NOISE, drawing.indices, shape),
        settings.num_sampling_steps,
        step_noise,
        on_step,
    )


def _guided(drawing: Drawing, objective: Objective, settings: SamplingSettings) -> LabelledDenoiser:
    """Return the network with its condition, and guidance if any, settled."""
    alone = drawing.alone()
    if settings.cfg_scale == 1:
        return alone
    return guided(
        alone,
        pair_of(settings.guide_by, drawing),
        settings.cfg_scale,
        settings.guidance_channels,
        settings.guidance_interval,
        objective.noise_levels,
    )
