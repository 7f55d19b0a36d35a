"""From settings to the model and the objective; training and sampling build them here alike."""

from dataclasses import asdict, replace
from typing import Any

from dit_scale.config import Config, DiffusionConfig
from dit_scale.diffusion import OBJECTIVES, Objective, build_objective
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, build_model
from dit_scale.models.presets import preset_values


def model_of(
    config: Config, latents: LatentSpec, num_classes: int, kernels: str = "auto", *, in_training: bool = False
) -> DiT:
    """Build the network of a configuration for latents of this shape and so many classes, with its initial weights.

    ``kernels`` is as ``engine.kernels``. ``in_training`` adds what is trained beside it and neither samples nor is
    exported.
    """
    times = OBJECTIVES[config.diffusion.name].num_times
    settings = asdict(config.model) | {"in_channels": latents.channels, "num_times": times}
    model = build_model(**settings, latent_size=latents.size, num_classes=num_classes)
    if kernels == "off":
        model.turn_off_kernels()
    return model


def with_preset(config: Config) -> Config:
    """Return a configuration in which ``model.*`` says what its null takes: the preset's value, or the default."""
    values = preset_values(config.model.name)
    unsaid: dict[str, Any] = {name: values.get(name) for name, value in vars(config.model).items() if value is None}
    return replace(config, model=replace(config.model, **unsaid))


def objective_of(config: DiffusionConfig, learn_sigma: bool) -> Objective:
    """Build the objective; raises InputError where the model's outputs do not fit it."""
    return build_objective(**asdict(config), learn_sigma=learn_sigma)
