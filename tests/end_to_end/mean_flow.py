"""`python -m tests.end_to_end.mean_flow …`: dit_scale whose `diffusion.name=flow` is MeanFlow."""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dit_scale.cli import main
from dit_scale.diffusion import FlowMatching, Term, Terms
from dit_scale.diffusion.losses import LabelledDenoiser, sample_mean
from dit_scale.diffusion.objective import OBJECTIVES


@dataclass(frozen=True)
class MeanFlow(FlowMatching):
    """Learning the velocity averaged from t down to r (arXiv 2505.13447); the network is told 1 - t and 1 - r."""

    solvers: ClassVar[tuple[str, ...]] = ("euler",)
    default_solver: ClassVar[str] = "euler"
    num_times: ClassVar[int] = 2

    def times_from_uniform(self, uniform: Tensor) -> Tensor:
        return super().times_from_uniform(uniform).sort(dim=1, descending=True).values  # [N, 2]: t, r

    def loss(self, denoiser: LabelledDenoiser, latent: Tensor, noise: Tensor, time: Tensor) -> Terms:
        """Return ``mse`` to v - (t - r) du/dt (eq. 10), where z moves by v while t moves by 1 and r stays."""
        latent, noise, times = latent.float(), noise.float(), time.float()
        t, r = times[:, :, None, None, None].unbind(dim=1)
        velocity = noise - latent
        tangents = velocity, torch.tensor([1.0, 0.0], device=times.device).expand_as(times)

        def average(noised: Tensor, times: Tensor) -> Tensor:
            return -denoiser(noised, 1 - times)[:, : noised.shape[1]].float()

        mean, derivative = torch.func.jvp(average, ((1 - t) * latent + t * noise, times), tangents)
        return {"mse": Term(sample_mean((mean - velocity + (t - r) * derivative.detach()) ** 2))}

    def velocity(self, denoiser: LabelledDenoiser, noised: Tensor, time: Tensor) -> Tensor:
        return super().velocity(denoiser, noised, torch.stack((time, time), dim=1))


if __name__ == "__main__":
    OBJECTIVES["flow"] = MeanFlow
    main(sys.argv[1:])
