"""Gaussian diffusion (DDPM, arXiv 2006.11239) with a learned range of variances (2102.09672).

``noised_latent = alpha * latent + sigma * noise`` with alpha² + sigma² = 1. Latents are [N, C, S, S].
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dit_scale.diffusion.losses import LabelledDenoiser, Term, Terms, discretized_gaussian_nll, gaussian_kl, sample_mean
from dit_scale.diffusion.schedule import NoiseSchedule, Tables, build_schedule, space_timesteps
from dit_scale.errors import InputError, nearest

PREDICTIONS = ("epsilon", "v", "x0")


class Posterior(NamedTuple):
    """The mean and the log-variance of a Gaussian over the next, less noised latent."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class GaussianDiffusion:
    """Denoising over a discrete schedule, learnt with an MSE and, with ``learn_sigma``, a variational bound."""

    num_timesteps: int = 1000
    """Steps of the schedule."""
    schedule: str = "linear"
    """``linear`` or ``cosine``."""
    prediction: str = "epsilon"
    """What the network predicts: ``epsilon``, ``v`` or ``x0``."""
    learn_sigma: bool = True
    """Whether the network's output has C more channels, that say where in its range each variance lies."""
    min_snr_gamma: float = 0.0
    """Signal-to-noise ratio at which the weights of ``mse`` are clipped (arXiv 2303.09556); 0 weighs all alike."""

    solvers: ClassVar[tuple[str, ...]] = ("ddpm", "ddim", "dpm-solver++")
    default_solver: ClassVar[str] = "ddpm"
    num_times: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise InputError(f"prediction {self.prediction!r} is unknown{nearest(self.prediction, PREDICTIONS)}")
        if self.min_snr_gamma < 0:
            raise InputError(f"min_snr_gamma {self.min_snr_gamma:g} is below 0; 5 is the published value, 0 is none")
        _ = self.noise_schedule  # an unknown schedule is refused here, not at the first step

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:
        """All steps of the schedule."""
        return build_schedule(self.schedule, self.num_timesteps)

    def shortened_schedule(self, respacing: str) -> NoiseSchedule:
        """Keep only the steps that ``space_timesteps`` chooses, for a solver."""
        return self.noise_schedule.respaced(space_timesteps(self.num_timesteps, respacing))

    def times_from_uniform(self, uniform: Tensor) -> Tensor:
        """Map draws [N] from [0, 1) to integer timesteps [N], all equally likely."""
        return (uniform * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)  # [N]

    def noise_levels(self, network_time: Tensor) -> Tensor:
        """Return how far [N], from 0 at the latent to 1 at noise, the timesteps that a network is told lie."""
        return network_time / max(1, self.num_timesteps - 1)

    def loss(self, denoiser: LabelledDenoiser, latent: Tensor, noise: Tensor, time: Tensor) -> Terms:
        """Return ``mse`` and, with ``learn_sigma``, ``vb``: lambda * T * VB of each sample (2102.09672, eq. 16).

        The bound L_vlb is a sum over T timesteps, of which one is drawn; the published lambda is 0.001.

        Raises:
            InputError: the network's output has the wrong number of channels.
        """
        at = self.noise_schedule.tables(latent.device).at(time)
        latent, noise = latent.float(), noise.float()
        noised = at.alpha * latent + at.sigma * noise  # DDPM, eq. 4
        prediction, range_logits = self.split_output(denoiser(noised, time), latent.shape[1])
        mse = sample_mean((self._target(latent, noise, at) - prediction) ** 2)  # [N]
        if self.min_snr_gamma:
            mse = self._min_snr_weight(at) * mse
        if range_logits is None:
            return {"mse": Term(mse)}
        # The bound teaches the variance alone: its mean is cut from the graph (section 3.1).
        frozen_x0 = self._x0(prediction.detach(), noised, at)
        model = Posterior(_posterior_mean(frozen_x0, noised, at), self._log_variance(range_logits, at))
        vb = _variational_bound(model, latent, noised, time, at)  # [N]
        return {"mse": Term(mse), "vb": Term(vb * self.num_timesteps / 1000)}

    def posterior(self, output: Tensor, noised: Tensor, at: Tables) -> Posterior:
        """Return p(x_{t-1} | x_t) of the network's ``output`` at a step's tables (DDPM, eq. 7)."""
        prediction, range_logits = self.split_output(output, noised.shape[1])
        x0 = self._x0(prediction, noised, at)
        return Posterior(_posterior_mean(x0, noised, at), self._log_variance(range_logits, at))

    def x0_and_epsilon(self, output: Tensor, noised: Tensor, at: Tables) -> tuple[Tensor, Tensor]:
        """Return the latent and the noise that the network's ``output`` implies at a step's tables."""
        prediction, _ = self.split_output(output, noised.shape[1])
        x0 = self._x0(prediction, noised, at)
        # Taken as it is where it can be: through x0 it would lose digits where sigma is small.
        epsilon = prediction if self.prediction == "epsilon" else (noised - at.alpha * x0) / at.sigma
        return x0, epsilon

    def split_output(self, output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """Split an output into the prediction and the place in the range of variances, each [N, C, S, S]."""
        expected = 2 * channels if self.learn_sigma else channels
        if output.shape[1] != expected:
            raise InputError(
                f"the network's output has {output.shape[1]} channels where learn_sigma={self.learn_sigma} "
                f"needs {expected}; give model and diffusion the same learn_sigma"
            )
        prediction = output[:, :channels].float()
        return prediction, output[:, channels:].float() if self.learn_sigma else None

    def _target(self, latent: Tensor, noise: Tensor, at: Tables) -> Tensor:
        """What the network should predict; v is of "Progressive distillation", 2202.00512, section 4."""
        match self.prediction:
            case "epsilon":
                return noise
            case "v":
                return at.alpha * noise - at.sigma * latent
            case _:
                return latent

    def _min_snr_weight(self, at: Tables) -> Tensor:
        """Return the weight [N] of each sample's squared error (min-SNR, arXiv 2303.09556).

        min(SNR, gamma) where the latent is predicted; for noise and v it is divided by what their error is of the
        latent's: SNR and SNR + 1.
        """
        snr = (at.alpha / at.sigma).square().flatten()  # [N]
        clipped = snr.clamp(max=self.min_snr_gamma)
        match self.prediction:
            case "epsilon":
                return clipped / snr
            case "v":
                return clipped / (snr + 1)
            case _:
                return clipped

    def _x0(self, prediction: Tensor, noised: Tensor, at: Tables) -> Tensor:
        """Undo ``_target``: DDPM, eq. 15, for epsilon; 2202.00512, appendix D, for v."""
        match self.prediction:
            case "epsilon":
                return (noised - at.sigma * prediction) / at.alpha
            case "v":
                return at.alpha * noised - at.sigma * prediction
            case _:
                return prediction

    def _log_variance(self, range_logits: Tensor | None, at: Tables) -> Tensor:
        """Interpolate between the bounds of the variance in log space (2102.09672, eq. 15).

        Without a learned range the lower bound is taken, the posterior's variance: with few steps the upper
        one, beta, adds far too much noise (DDIM, arXiv 2010.02502, table 1).
        """
        if range_logits is None:
            return at.posterior_log_variance
        share = (range_logits + 1) / 2  # the network's -1 is the lower bound, 1 the upper
        return share * at.log_beta + (1 - share) * at.posterior_log_variance


def _posterior_mean(x0: Tensor, noised: Tensor, at: Tables) -> Tensor:
    """The mean of q(x_{t-1} | x_t, x_0): DDPM, eq. 7."""
    return at.posterior_x0 * x0 + at.posterior_noised * noised


def _variational_bound(model: Posterior, latent: Tensor, noised: Tensor, time: Tensor, at: Tables) -> Tensor:
    """The bound's term at ``time``, in bits a dimension [N]: L_0 at 0, L_{t-1} elsewhere (DDPM, eq. 5)."""
    true_mean = _posterior_mean(latent, noised, at)
    kl = gaussian_kl(true_mean, at.posterior_log_variance, *model)
    nll = discretized_gaussian_nll(latent, *model)
    nats = torch.where(time == 0, sample_mean(nll), sample_mean(kl))  # [N]
    return nats / math.log(2)
