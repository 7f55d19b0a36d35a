"""Flow matching along straight lines (arXiv 2210.02747, 2209.03003), compatible with SiT (2401.08740).

Time t runs from the latent (t = 0) to noise (t = 1). SiT's runs the other way: its network is told 1 - t and
predicts the opposite velocity, and both are converted in ``velocity``, so that its weights load unchanged.
``time_at_data`` 0 is for networks that are told t itself.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_scale.diffusion.losses import LabelledDenoiser, Term, Terms, sample_mean
from dit_scale.errors import InputError, nearest

TIME_DISTRIBUTIONS = ("uniform", "logit_normal")
PREDICTIONS = ("velocity", "x0")
HALF_DRAW = 2.0**-25
"""Half the distance between fp32 draws from [0, 1); it stands for a draw of exactly 0, whose logit is -inf."""
LEAST_DIVISOR = 0.05
"""Below it t divides no more where a velocity is derived from a latent (JiT, arXiv 2511.13720)."""


@dataclass(frozen=True)
class FlowMatching:
    """Learning the velocity of the straight path from latent to noise."""

    time_distribution: str = "uniform"
    """How training times are drawn: ``uniform`` or ``logit_normal``."""
    logit_mean: float = 0.0
    """Mean of the logit of t; above 0 leans towards noise."""
    logit_std: float = 1.0
    """Standard deviation of the logit of t."""
    time_interval: tuple[float, float] = (0.0, 1.0)
    """The part of [0, 1] to which the distribution of training times is truncated, before they are shifted."""
    time_shift: float = 1.0
    """How far training times, and by default the steps of solvers, are moved: above 1 towards noise."""
    prediction: str = "velocity"
    """What the network's output stands for: ``velocity``, or ``x0``, the latent (JiT, arXiv 2511.13720)."""
    time_at_data: int = 1
    """1: the network is told 1 - t and predicts latent minus noise. 0: it is told t and predicts noise minus latent."""
    cosine_weight: float = 0.0
    """Weight of the cosine loss on the velocity's direction (LightningDiT, arXiv 2501.01423); 0 is none."""

    solvers: ClassVar[tuple[str, ...]] = ("euler", "midpoint", "heun", "dopri5", "sde")
    default_solver: ClassVar[str] = "heun"
    num_times: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.time_distribution not in TIME_DISTRIBUTIONS:
            hint = nearest(self.time_distribution, TIME_DISTRIBUTIONS)
            raise InputError(f"time_distribution {self.time_distribution!r} is unknown{hint}")
        if self.logit_std <= 0:
            raise InputError(f"logit_std {self.logit_std} is not above 0; 1.0 is the usual value")
        if self.time_shift <= 0:
            raise InputError(f"time_shift {self.time_shift:g} is not above 0; 1 leaves times where they are")
        if self.prediction not in PREDICTIONS:
            raise InputError(f"prediction {self.prediction!r} is unknown{nearest(self.prediction, PREDICTIONS)}")
        if self.time_at_data not in (0, 1):
            raise InputError(f"time_at_data {self.time_at_data} is neither 1 (SiT) nor 0 (REPA, RAE); give one of them")
        low, high = self.time_interval
        if not 0 <= low < high <= 1:
            raise InputError(f"time_interval {low:g},{high:g} does not rise within 0 and 1; 0,1 truncates nothing")

    def times_from_uniform(self, uniform: Tensor) -> Tensor:
        """Map draws [N] from [0, 1) to times t [N] in [0, 1].

        Logit-normal times are those of "Scaling rectified flow transformers", arXiv 2403.03206, eq. 19,
        by the inverse of their distribution function. Truncated, only the part of [0, 1) is mapped that lies between
        the values of that function at the interval's ends.
        """
        if self.time_interval != (0.0, 1.0):
            low, high = map(self._share_below, self.time_interval)
            uniform = low + (high - low) * uniform
        times = uniform
        if self.time_distribution == "logit_normal":
            normal = torch.special.ndtri(uniform.clamp(min=HALF_DRAW))  # [N]
            times = torch.sigmoid(self.logit_mean + self.logit_std * normal)  # [N]
        return times if self.time_shift == 1 else shifted(times, self.time_shift)

    def _share_below(self, time: float) -> float:
        """Return which part of the times, neither truncated nor shifted, lie below one."""
        if self.time_distribution == "uniform" or time in (0.0, 1.0):
            return time
        score = (math.log(time / (1 - time)) - self.logit_mean) / self.logit_std
        return 0.5 * (1 + math.erf(score / math.sqrt(2)))

    def noise_levels(self, network_time: Tensor) -> Tensor:
        """Return t [N] for the times that a network is told."""
        return 1 - network_time if self.time_at_data else network_time

    def loss(self, denoiser: LabelledDenoiser, latent: Tensor, noise: Tensor, time: Tensor) -> Terms:
        """Return ``mse``, the squared error of each sample's velocity, and ``cosine`` where it has a weight.

        Rectified flow, 2209.03003, eq. 1; LightningDiT, 2501.01423: 1 - the cosine over channels, a mean over pixels.
        """
        latent, noise = latent.float(), noise.float()
        noised = self.noised(latent, noise, time)
        velocity = self.velocity(denoiser, noised, time)
        target = noise - latent if self.prediction == "velocity" else _away_from(latent, noised, time)
        terms = {"mse": Term(sample_mean((target - velocity) ** 2))}  # [N]
        if self.cosine_weight:
            cosine = F.cosine_similarity(velocity, target, dim=1)  # [N, S, S]
            terms["cosine"] = Term(sample_mean(1 - cosine), self.cosine_weight)  # [N]
        return terms

    def noised(self, latent: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the point [N, C, S, S] of the straight path at ``time`` [N]."""
        t = time[:, None, None, None].float()
        return (1 - t) * latent + t * noise

    def velocity(self, denoiser: LabelledDenoiser, noised: Tensor, time: Tensor) -> Tensor:
        """Return d(noised)/dt [N, C, S, S] at ``time`` [N], in fp32; output channels past C are not used."""
        output = denoiser(noised, 1 - time if self.time_at_data else time)[:, : noised.shape[1]]
        if self.prediction == "x0":
            return _away_from(output.float(), noised, time)
        return -output.float() if self.time_at_data else output.float()


def shifted(times: Tensor, shift: float) -> Tensor:
    """Move times towards noise, for a shift above 1, or towards the latent (arXiv 2403.03206, eq. 23)."""
    return shift * times / (1 + (shift - 1) * times)


def _away_from(latent: Tensor, noised: Tensor, time: Tensor) -> Tensor:
    """Return the velocity of the straight path from ``latent`` through ``noised`` (JiT, arXiv 2511.13720).

    For small t it is too short, of the network and of the truth alike, so that the loss stays bounded.
    """
    return (noised - latent) / time[:, None, None, None].float().clamp(min=LEAST_DIVISOR)
