"""From settings to the model and the objective; training and sampling build them here alike."""

from dataclasses import asdict

from dit_scale.alignment import outline_of
from dit_scale.config import AlignmentConfig, Config, DiffusionConfig
from dit_scale.diffusion import Objective, build_objective
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, Projectors, build_model


def model_of(
    config: Config, latents: LatentSpec, num_classes: int, kernels: str = "auto", *, in_training: bool = False
) -> DiT:
    """Build the network of a configuration for latents of this shape and so many classes, with its initial weights.

    ``kernels`` is as ``engine.kernels``. ``in_training`` adds what is trained beside it and neither samples nor is
    exported.
    """
    settings = asdict(config.model) | {"in_channels": latents.channels}
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


def objective_of(config: DiffusionConfig, learn_sigma: bool) -> Objective:
    """Build the objective; raises InputError where the model's outputs do not fit it."""
    return build_objective(**asdict(config), learn_sigma=learn_sigma)
