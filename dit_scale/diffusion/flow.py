"""Flow matching along straight lines (arXiv 2210.02747, 2209.03003), compatible with SiT (2401.08740).

Time t runs from the latent (t = 0) to noise (t = 1). SiT's runs the other way: its network is told 1 - t and
predicts the opposite velocity, and both are converted in ``velocity``, so that its weights load unchanged.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dit_scale.diffusion.losses import LabelledDenoiser, Term, Terms, sample_mean
from dit_scale.errors import InputError, nearest

TIME_DISTRIBUTIONS = ("uniform", "logit_normal")
HALF_DRAW = 2.0**-25
"""Half the distance between fp32 draws from [0, 1); it stands for a draw of exactly 0, whose logit is -inf."""


@dataclass(frozen=True)
class FlowMatching:
    """Learning the velocity of the straight path from latent to noise."""

    time_distribution: str = "uniform"
    """How training times are drawn: ``uniform`` or ``logit_normal``."""
    logit_mean: float = 0.0
    """Mean of the logit of t; above 0 leans towards noise."""
    logit_std: float = 1.0
    """Standard deviation of the logit of t."""

    solvers: ClassVar[tuple[str, ...]] = ("euler", "midpoint", "heun", "dopri5", "sde")
    default_solver: ClassVar[str] = "heun"
    num_times: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.time_distribution not in TIME_DISTRIBUTIONS:
            hint = nearest(self.time_distribution, TIME_DISTRIBUTIONS)
            raise InputError(f"time_distribution {self.time_distribution!r} is unknown{hint}")
        if self.logit_std <= 0:
            raise InputError(f"logit_std {self.logit_std} is not above 0; 1.0 is the usual value")

    def times_from_uniform(self, uniform: Tensor) -> Tensor:
        """Map draws [N] from [0, 1) to times t [N] in [0, 1].

        Logit-normal times are those of "Scaling rectified flow transformers", arXiv 2403.03206, eq. 19,
        by the inverse of their distribution function.
        """
        if self.time_distribution == "uniform":
            return uniform
        normal = torch.special.ndtri(uniform.clamp(min=HALF_DRAW))  # [N]
        return torch.sigmoid(self.logit_mean + self.logit_std * normal)  # [N]

    def noise_levels(self, network_time: Tensor) -> Tensor:
        """Return t [N] for the times that a network is told."""
        return 1 - network_time

    def loss(self, denoiser: LabelledDenoiser, latent: Tensor, noise: Tensor, time: Tensor) -> Terms:
        """Return ``mse``, the squared error of each sample's velocity (rectified flow, 2209.03003, eq. 1)."""
        latent, noise, t = latent.float(), noise.float(), time[:, None, None, None].float()
        noised = (1 - t) * latent + t * noise
        velocity = self.velocity(denoiser, noised, time)
        return {"mse": Term(sample_mean((noise - latent - velocity) ** 2))}  # [N]

    def velocity(self, denoiser: LabelledDenoiser, noised: Tensor, time: Tensor) -> Tensor:
        """Return d(noised)/dt [N, C, S, S] at ``time`` [N], in fp32; output channels past C are not used."""
        output = denoiser(noised, 1 - time)
        return -output[:, : noised.shape[1]].float()
