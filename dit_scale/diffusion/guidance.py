"""Guidance: a model's output is moved away from that of a weaker one.

Without a condition it is the weaker one of classifier-free guidance (Ho & Salimans, arXiv 2207.12598).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dit_scale.diffusion.losses import Denoiser, LabelledDenoiser
from dit_scale.errors import InputError

Interval = tuple[float, float]
"""The noise levels t, 0 at the latent and 1 at noise, between which there is guidance."""

Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(noised_latent, time) -> (output, weaker output)``, each [N, C_out, S, S]: a model beside a weaker one."""


def guided(
    denoiser: LabelledDenoiser,
    pair: Pair,
    cfg_scale: float,
    channels: int | None = 3,
    interval: Interval = (0.0, 1.0),
    noise_levels: Callable[[Tensor], Tensor] | None = None,
) -> LabelledDenoiser:
    """Return a model whose output is moved away from a weaker one's; ``pair`` computes both, ``denoiser`` itself alone.

    ``cfg_scale`` 1 leaves the output where it is. ``channels`` is how many latent channels are guided: the first 3, as
    published, or None for all. The others, and the variances, are the model's own. Outside of ``interval`` there is no
    guidance (arXiv 2404.07724); that needs an objective's ``noise_levels``, and a solver that tells all images one
    time.

    Raises:
        InputError: guidance of channels that the latent does not have, or in an interval that is none.
    """
    if not 0 <= interval[0] < interval[1] <= 1:
        raise InputError(
            f"guidance interval {interval[0]:g},{interval[1]:g} does not rise from 0 (latent) to 1 (noise); "
            f"0,1 guides everywhere"
        )

    def guided_denoiser(noised: Tensor, time: Tensor) -> Tensor:
        if interval != (0.0, 1.0) and noise_levels is not None:
            level = noise_levels(time[:1]).item()
            if not interval[0] <= level <= interval[1]:
                return denoiser(noised, time)
        count = _num_guided(channels, noised.shape[1])
        output, weaker = (each.float() for each in pair(noised, time))  # 2 x [N, C_out, S, S]
        # arXiv 2207.12598, eq. 6, with cfg_scale = 1 + w; for any weaker model: arXiv 2406.02507, eq. 3
        direction = output[:, :count] - weaker[:, :count]
        moved = weaker[:, :count] + cfg_scale * direction
        return torch.cat([moved, output[:, count:]], dim=1)  # [N, C_out, S, S]

    return guided_denoiser


def with_null(denoiser: Denoiser, condition: Tensor, nulls: Tensor) -> Pair:
    """Return a network under its condition [N, ...] beside itself under that for none: one batch of 2N."""
    both = torch.cat([condition, nulls])  # [2N, ...]

    def pair(noised: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        output = denoiser(torch.cat([noised, noised]), torch.cat([time, time]), both)  # [2N, C_out, S, S]
        conditional, unconditional = output.chunk(2)  # 2 x [N, C_out, S, S]
        return conditional, unconditional

    return pair


def one_by_one(denoiser: LabelledDenoiser, weaker: LabelledDenoiser) -> Pair:
    """Return a model beside another one that is weaker: two batches of N."""
    return lambda noised, time: (denoiser(noised, time), weaker(noised, time))


def _num_guided(channels: int | None, latent_channels: int) -> int:
    if channels is None:
        return latent_channels
    if not 1 <= channels <= latent_channels:
        raise InputError(
            f"guidance of {channels} channels does not suit a latent of {latent_channels}; "
            f"choose 1 to {latent_channels}, or leave it out to guide all"
        )
    return channels
