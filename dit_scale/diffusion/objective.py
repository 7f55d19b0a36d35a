"""The interface behind which Gaussian diffusion and flow matching stand, and the choice between them."""

import dataclasses
from typing import Any, Protocol

from torch import Tensor

from dit_scale.diffusion.flow import FlowMatching
from dit_scale.diffusion.gaussian import GaussianDiffusion
from dit_scale.diffusion.losses import LabelledDenoiser, Terms
from dit_scale.errors import InputError, nearest


class Objective(Protocol):
    """What is learnt; each solver reads the rest that it needs from the objectives that it fits."""

    @property
    def solvers(self) -> tuple[str, ...]:
        """The names of the solvers that sample from it."""

    @property
    def default_solver(self) -> str:
        """The solver where none is named."""

    @property
    def num_times(self) -> int:
        """How many times are drawn for an image, and the network is told: k, 1 for Gaussian diffusion and flows."""

    def times_from_uniform(self, uniform: Tensor) -> Tensor:
        """Map draws from [0, 1) to training times: integer timesteps, or t in [0, 1].

        Draws are float64 (``draws.uniform``). Both are [N], or [N, k] where there are several times an image.
        """

    def noise_levels(self, network_time: Tensor) -> Tensor:
        """Map the times [N] that a network is told to t [N]: 0 at the latent, 1 at noise."""

    def loss(self, denoiser: LabelledDenoiser, latent: Tensor, noise: Tensor, time: Tensor) -> Terms:
        """Return the terms of the loss for latents [N, C, S, S], their noise and their times [N] or [N, k]."""


OBJECTIVES: dict[str, type[GaussianDiffusion] | type[FlowMatching]] = {
    "gaussian": GaussianDiffusion,
    "flow": FlowMatching,
}


def build_objective(name: str, **options: Any) -> Objective:
    """Build the objective ``name`` from those of ``options`` that are its own.

    An option of another objective is ignored, so that one section of a configuration serves all of them.

    Raises:
        InputError: a name or an option that no objective has, or a value that its objective refuses.
    """
    if name not in OBJECTIVES:
        raise InputError(f"diffusion {name!r} is unknown{nearest(name, OBJECTIVES)}")
    known = {field.name for kind in OBJECTIVES.values() for field in dataclasses.fields(kind)}
    for option in options:
        if option not in known:
            raise InputError(f"diffusion has no option {option!r}{nearest(option, sorted(known))}")
    own = {field.name for field in dataclasses.fields(OBJECTIVES[name])}
    return OBJECTIVES[name](**{option: value for option, value in options.items() if option in own})
