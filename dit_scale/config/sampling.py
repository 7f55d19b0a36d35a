"""How noise becomes an image: one set of settings for `sample`, previews and evaluations."""

from dataclasses import dataclass
from typing import ClassVar

from dit_scale.config.fields import SEEDS, Spell, When, number, setting, unless
from dit_scale.errors import InputError

_GUIDED = unless("cfg_scale", 1.0)


@dataclass(frozen=True)
class SamplingConfig:
    """From noise to latent."""

    solver: str | None = None
    """Solver: ddpm (default), ddim, dpm-solver++; for flows heun (default), euler, midpoint, dopri5, sde."""
    num_sampling_steps: int = number(50, at_least=1)
    """Steps of the solver, one fewer than the points of SiT's ODE."""
    solver_options: dict[str, float] = number({})
    """Of the solver: ddim eta; flows time_shift, end_time; dopri5 tolerance; sde diffusion_norm, last_step_size."""
    cfg_scale: float = number(1.0, at_least=0)
    """Guidance; 1 is none."""
    guide_by: str | None = setting(None, only_if=_GUIDED)
    """The weaker model: null (no label), early (model.early_block), routed or dropped (routing), or a run's PATH."""
    guidance_channels: int | None = number(None, at_least=1, only_if=_GUIDED)
    """Guide the first channels only (published DiT: 3); null guides all."""
    guidance_interval: tuple[float, float] = number((0.0, 1.0), at_least=0, at_most=1, only_if=_GUIDED)
    """Guide between these noise levels only, 0 the latent and 1 noise."""

    def check_together(self, spell: Spell) -> None:
        """Raise InputError where settings do not fit each other."""
        low, high = self.guidance_interval
        if not low < high:
            raise InputError(
                f"{spell('guidance_interval')}=[{low:g}, {high:g}] does not rise from 0 (latent) to 1 (noise); 0 and 1 "
                f"guide everywhere"
            )


@dataclass(frozen=True)
class SampleConfig(SamplingConfig):
    """What `sample` takes; a run has one seed for all."""

    seed: int = number(0, **SEEDS)
    """Seed of every draw."""


@dataclass(frozen=True)
class PreviewConfig(SamplingConfig):
    only_if: ClassVar[When] = unless("every_steps", 0)

    every_steps: int = number(10_000, at_least=0)
    """Steps between preview grids; 0 draws none."""
    classes: tuple[int, ...] = number((), at_least=0)
    """Classes in the grid; empty takes up to eight, spread evenly."""
    samples_per_class: int = number(4, at_least=1)
    """Images a class."""
    cfg_scale: float = number(4.0, at_least=0)
    """Guidance; 1 is none."""


@dataclass(frozen=True)
class EvaluationConfig(SamplingConfig):
    only_if: ClassVar[When] = unless("every_steps", 0)

    every_steps: int = number(0, at_least=0)
    """Steps between evaluations of the EMA's images, written to evaluation/ in the run folder; 0 makes none."""
    num_images: int = number(1_000, at_least=1)
    """Images drawn for one, of all classes and always from the same noise."""
    reference: str | None = None
    """Real images: a folder, an .npz or ADM's statistics; null takes as many crops of the data, or decoded records."""
    weights: str | None = None
    """File of Inception's weights, for FID and its kin; null takes a small classifier's features, under its name."""
    batch_size: int = number(32, at_least=1)
    """Images at once on a rank; part of the protocol, as it changes last bits."""
