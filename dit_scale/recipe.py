"""From settings to the model and the objective; training and sampling build them here alike."""

import math
from dataclasses import asdict, replace
from typing import Any

from dit_scale.alignment import outline_of
from dit_scale.config import AlignmentConfig, Config, DiffusionConfig, RoutingConfig
from dit_scale.diffusion import OBJECTIVES, Objective, build_objective
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, Projectors, Route, build_model
from dit_scale.models.presets import preset_values


def model_of(
    config: Config, latents: LatentSpec, num_classes: int, kernels: str = "auto", *, in_training: bool = False
) -> DiT:
    """Build the network of a configuration for latents of this shape and so many classes, with its initial weights.

    ``kernels`` is as ``engine.kernels``. ``in_training`` adds what is trained beside it and neither samples nor is
    exported.
    """
    settings = asdict(config.model) | {
        "in_channels": latents.channels,
        "num_times": OBJECTIVES[config.diffusion.name].num_times,
        "route": route_of(config.routing),
    }
    if in_training and config.alignment.encoders:
        settings |= {"projectors": _projectors_of(config.alignment)}
    model = build_model(**settings, latent_size=latents.size, num_classes=num_classes)
    if kernels == "off":
        model.turn_off_kernels()
    return model


def _projectors_of(config: AlignmentConfig) -> Projectors:
    widths = tuple(outline_of(name).width for name in config.encoders)
    return Projectors(
        after_block=config.after_block, widths=widths, kind=config.projector, width=config.projector_width
    )


def route_of(routing: RoutingConfig) -> Route | None:
    """Return the blocks that tokens may go around; None where routing is off."""
    if not routing.ratio:
        return None
    return Route(routing.from_block, routing.to_block, routing.fill, routing.ratio)


def with_preset(config: Config) -> Config:
    """Return a configuration in which ``model.*`` says what its null takes: the preset's value, or the default."""
    values = preset_values(config.model.name)
    unsaid: dict[str, Any] = {name: values.get(name) for name, value in vars(config.model).items() if value is None}
    return replace(config, model=replace(config.model, **unsaid))


def objective_of(config: DiffusionConfig, model: DiT) -> Objective:
    """Build the objective for a model's outputs and the shape of its latents; raises InputError where it is none."""
    settings = asdict(config) | {"learn_sigma": model.learn_sigma}
    for beside in ("contrastive_weight", "early_weight"):  # of losses beside it
        del settings[beside]
    base = settings.pop("time_shift_base")
    if config.time_shift is None:
        numbers = model.in_channels * model.latent_size**2
        settings["time_shift"] = math.sqrt(numbers / base)  # RAE, arXiv 2510.11690
    if config.name == "flow" and config.prediction != "x0":
        settings["prediction"] = "velocity"  # the setting's default is that of Gaussian diffusion
    return build_objective(**settings)
