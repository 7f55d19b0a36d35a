"""Classifier-free guidance (Ho & Salimans, arXiv 2207.12598)."""

import torch
from torch import Tensor

from dit_scale.diffusion.losses import Denoiser, LabelledDenoiser
from dit_scale.errors import InputError


def guided(
    denoiser: Denoiser, label: Tensor, null_label: int | None, cfg_scale: float, channels: int | None = 3
) -> LabelledDenoiser:
    """Settle the labels [N] of a network, and move its output away from that for no label.

    ``cfg_scale`` 1 is no guidance and costs one pass; otherwise the conditional and the unconditional halves
    go through the network in one batch of 2N. ``channels`` is how many latent channels are guided: the first
    3, as published, or None for all. The others, and the variances, are those of the conditional half.

    Raises:
        InputError: guidance of a model without a null label, or of channels that the latent does not have.
    """
    if cfg_scale == 1:
        return lambda noised, time: denoiser(noised, time, label)
    if null_label is None:
        raise InputError(
            f"cfg_scale {cfg_scale} needs a null label, and this model was built with label_dropout 0; "
            "set cfg_scale to 1 or train with label_dropout above 0"
        )
    labels = torch.cat([label, torch.full_like(label, null_label)])  # [2N]

    def guided_denoiser(noised: Tensor, time: Tensor) -> Tensor:
        count = _num_guided(channels, noised.shape[1])
        output = denoiser(torch.cat([noised, noised]), torch.cat([time, time]), labels)  # [2N, C_out, S, S]
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
            f"choose 1 to {latent_channels}, or None for all"
        )
    return channels
