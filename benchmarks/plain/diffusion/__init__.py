"""Gaussian diffusion in plain PyTorch: 1,000 linear steps, noise predicted, the variance learned."""

import math
from typing import Any

import torch
from torch import Tensor


def create_diffusion(timestep_respacing: str = "") -> "Diffusion":
    """Return the diffusion for training (``""``), or a part of its steps for DDIM (``"ddim50"``)."""
    if not timestep_respacing:
        return Diffusion(torch.arange(1000))
    count = int(timestep_respacing.removeprefix("ddim"))
    return Diffusion(torch.arange(0, 1000, 1000 // count)[:count])


class Diffusion:
    """The schedule at the steps that are used."""

    def __init__(self, steps: Tensor):
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[steps]
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        self.steps, self.num_timesteps = steps, len(steps)
        self.kept, self.before = kept, before
        self.betas = 1 - kept / before
        self.variance = self.betas * (1 - before) / (1 - kept)
        self.log_variance = torch.cat([self.variance[1:2], self.variance[1:]]).log()

    def training_losses(self, model: Any, x: Tensor, t: Tensor, model_kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``loss`` [N]: squared error of the noise, and the variational bound of the variance."""
        noise = torch.randn_like(x)
        noised = _at(self.kept.sqrt(), t) * x + _at((1 - self.kept).sqrt(), t) * noise
        predicted, fraction = model(noised, t, **model_kwargs).float().chunk(2, dim=1)
        bound = self._bound(x, noised, t, predicted.detach(), fraction)
        return {"loss": (predicted - noise).square().flatten(1).mean(1) + bound}

    def ddim_sample_loop(
        self,
        model: Any,
        shape: tuple[int, ...],
        noise: Tensor,
        clip_denoised: bool,
        model_kwargs: dict[str, Any],
        progress: bool = False,
        device: Any = None,
    ) -> Tensor:
        """Return latents by DDIM with eta 0; guidance is the model's."""
        x = noise
        for i in reversed(range(self.num_timesteps)):
            t = torch.full((len(x),), i, device=x.device)
            predicted = model(x, self.steps.to(x.device)[t], **model_kwargs).float()[:, : x.shape[1]]
            start = (x - _at((1 - self.kept).sqrt(), t) * predicted) / _at(self.kept.sqrt(), t)
            x = _at(self.before.sqrt(), t) * start + _at((1 - self.before).sqrt(), t) * predicted
        return x

    def _bound(self, x: Tensor, noised: Tensor, t: Tensor, predicted: Tensor, fraction: Tensor) -> Tensor:
        """Return the bound's term in bits a number, a thousandth of it for each of 1,000 steps."""
        low, high = _at(self.log_variance, t), _at(self.betas.log(), t)
        log_variance = low + (fraction + 1) / 2 * (high - low)
        true_mean = self._posterior_mean(x, noised, t)
        start = (noised - _at((1 - self.kept).sqrt(), t) * predicted) / _at(self.kept.sqrt(), t)
        mean = self._posterior_mean(start, noised, t)
        divergence = 0.5 * (
            log_variance - low - 1 + (low - log_variance).exp() + (true_mean - mean).square() * (-log_variance).exp()
        )
        likelihood = -_log_likelihood(x, mean, 0.5 * log_variance)
        per_image = torch.where(
            t == 0, likelihood.flatten(1).mean(1) / math.log(2), divergence.flatten(1).mean(1) / math.log(2)
        )
        return per_image * self.num_timesteps / 1000.0

    def _posterior_mean(self, start: Tensor, noised: Tensor, t: Tensor) -> Tensor:
        first = self.betas * self.before.sqrt() / (1 - self.kept)
        second = (1 - self.before) * (1 - self.betas).sqrt() / (1 - self.kept)
        return _at(first, t) * start + _at(second, t) * noised


def _log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return the log-likelihood of values in bins of 2/255 under a Gaussian, by the tanh approximation."""
    scale = (-log_deviation).exp()

    def below(value: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    upper, lower = below(scale * (x - mean + 1 / 255)), below(scale * (x - mean - 1 / 255))
    inside = torch.where(x > 0.999, 1 - lower, upper - lower)
    return torch.where(x < -0.999, upper, inside).clamp(min=1e-12).log()


def _at(values: Tensor, t: Tensor) -> Tensor:
    """Pick each image's number, [N, 1, 1, 1]; from the host at each call, as one writes it first."""
    return values.to(t.device)[t].float()[:, None, None, None]
