"""What an objective is given, the named terms it returns, and the likelihood terms it is made of."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(noised_latent, time, label) -> output``: a network."""

LabelledDenoiser = Callable[[Tensor, Tensor], Tensor]
"""``(noised_latent, time) -> output``: a network whose labels, and guidance, are settled."""


class Term(NamedTuple):
    """One term of a loss."""

    value: Tensor
    """Of each sample, [N], in fp32: what is logged."""
    weight: float = 1.0
    """What it is multiplied with in the loss."""


Terms = dict[str, Term]
"""A loss as the terms it is the weighted sum of, by the names under which they are logged."""


def total(terms: Mapping[str, Term]) -> Tensor:
    """Return the weighted sum [N] of the terms, in their order."""
    first, *others = (value if weight == 1.0 else weight * value for value, weight in terms.values())
    for other in others:
        first = first + other
    return first


def sample_mean(values: Tensor) -> Tensor:
    """Average [N, ...] over everything but the first dimension, to [N]."""
    return values.flatten(1).mean(dim=1)  # [N]


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Return KL(N1 || N2) of two diagonal Gaussians, in nats, elementwise."""
    log_ratio = log_variance1 - log_variance2
    return 0.5 * (log_ratio.exp() - 1 - log_ratio + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def discretized_gaussian_nll(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return -log of the Gaussian's mass in the bin of ``value``, in nats (DDPM, arXiv 2006.11239, eq. 13).

    The bins are those of 8-bit images on [-1, 1], the outermost reaching to infinity; latents are binned
    as if they were such images, as published.
    """
    half_bin = 1 / 255
    inverse_std = torch.exp(-0.5 * log_variance)
    upper = _normal_cdf((value - mean + half_bin) * inverse_std)
    lower = _normal_cdf((value - mean - half_bin) * inverse_std)
    upper = torch.where(value > 0.999, 1.0, upper)
    lower = torch.where(value < -0.999, 0.0, lower)
    return -(upper - lower).clamp(min=1e-12).log()


def _normal_cdf(value: Tensor) -> Tensor:
    """Approximate the standard normal's distribution function (Page, Applied Statistics 26(1), 1977)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))
