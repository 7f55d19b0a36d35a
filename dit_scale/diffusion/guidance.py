"""Classifier-free guidance (Ho & Salimans, arXiv 2207.12598)."""

from collections.abc import Callable

import torch
from torch import Tensor

from dit_scale.diffusion.losses import Denoiser, LabelledDenoiser
from dit_scale.errors import InputError

Interval = tuple[float, float]
"""The noise levels t, 0 at the latent and 1 at noise, between which there is guidance."""


def guided(
    denoiser: Denoiser,
    condition: Tensor,
    nulls: Tensor | None,
    cfg_scale: float,
    channels: int | None = 3,
    interval: Interval = (0.0, 1.0),
    noise_levels: Callable[[Tensor], Tensor] | None = None,
) -> LabelledDenoiser:
    """Settle the condition [N, ...] of a network, and move its output away from that for none, ``nulls`` [N, ...].

    ``cfg_scale`` 1 is no guidance and costs one pass; otherwise the conditional and the unconditional halves
    go through the network in one batch of 2N. ``channels`` is how many latent channels are guided: the first
    3, as published, or None for all. The others, and the variances, are those of the conditional half.
    Outside of ``interval`` there is one pass (arXiv 2404.07724); it needs an objective's ``noise_levels``, and a
    solver that tells all images one time.

    Raises:
        InputError: guidance of a model without a null condition, of channels that the latent does not have, or in an
            interval that is none.
    """
    if cfg_scale == 1:
        return lambda noised, time: denoiser(noised, time, condition)
    if nulls is None:
        raise InputError(
            f"cfg_scale {cfg_scale} needs a null label, and this model was built with label_dropout 0 or "
            "without a condition; set cfg_scale to 1, or train with a condition and label_dropout above 0"
        )
    if not 0 <= interval[0] < interval[1] <= 1:
        raise InputError(
            f"guidance interval {interval[0]:g},{interval[1]:g} does not rise from 0 (latent) to 1 (noise); "
            f"0,1 guides everywhere"
        )
    both = torch.cat([condition, nulls])  # [2N, ...]

    def guided_denoiser(noised: Tensor, time: Tensor) -> Tensor:
        if interval != (0.0, 1.0) and noise_levels is not None:
            level = noise_levels(time[:1]).item()
            if not interval[0] <= level <= interval[1]:
                return denoiser(noised, time, condition)
        count = _num_guided(channels, noised.shape[1])
        output = denoiser(torch.cat([noised, noised]), torch.cat([time, time]), both)  # [2N, C_out, S, S]
        conditional, unconditional = output.float().chunk(2)  # 2 x [N, C_out, S, S]
        # arXiv 2207.12598, eq. 6, with cfg_scale = 1 + w
        direction = conditional[:, :count] - unconditional[:, :count]
        moved = unconditional[:, :count] + cfg_scale * direction
        return torch.cat([moved, conditional[:, count:]], dim=1)  # [N, C_out, S, S]

    return guided_denoiser


def _num_guided(channels: int | None, latent_channels: int) -> int:
    if channels is None:
        return latent_channels
    if not 1 <= channels <= latent_channels:
        raise InputError(
            f"guidance of {channels} channels does not suit a latent of {latent_channels}; "
            f"choose 1 to {latent_channels}, or leave it out to guide all"
        )
    return channels
