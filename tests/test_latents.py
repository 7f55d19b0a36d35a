"""Latents: scale and shift there and back, and draws from the posterior."""

import math

import pytest
import torch

from dit_scale.errors import InputError
from dit_scale.latents import NO_VARIANCE_LOG_VARIANCE, LatentSpec, sample_latent


@pytest.mark.parametrize(
    "spec",
    [
        LatentSpec(4, 8, scale=(0.18215,)),
        LatentSpec(4, 8, scale=(1.0, 2.0, 0.5, 4.0), shift=(0.1, 0.2, -0.3, 0.0)),
    ],
)
def test_normalise_there_and_back(spec: LatentSpec) -> None:
    raw = torch.randn(3, *spec.shape)
    torch.testing.assert_close(spec.denormalise(spec.normalise(raw)), raw)


def test_each_channel_has_its_own_numbers() -> None:
    spec = LatentSpec(2, 4, scale=(10.0, 100.0), shift=(1.0, 2.0))
    latent = spec.normalise(torch.full((1, 2, 4, 4), 3.0))
    assert torch.equal(latent[0, 0], torch.full((4, 4), 20.0))
    assert torch.equal(latent[0, 1], torch.full((4, 4), 100.0))


def test_a_wrong_number_of_scales_is_refused() -> None:
    with pytest.raises(InputError, match=r"latent scale has 3 numbers for 4 channels; give one, or one a channel"):
        LatentSpec(4, 8, scale=(1.0, 2.0, 3.0))


def test_a_latent_is_drawn_from_its_posterior() -> None:
    spec = LatentSpec(2, 4, scale=(2.0,), shift=(1.0,))
    mean, log_variance = torch.randn(2, 1, 2, 4, 4)
    noise = torch.randn(1, 2, 4, 4)
    latent = sample_latent(torch.cat((mean, log_variance), dim=1), noise, spec)
    torch.testing.assert_close(latent, 2.0 * (mean + torch.exp(log_variance).sqrt() * noise - 1.0))


def test_a_codec_without_variance_gives_its_mean_and_half_precision_is_enough_to_say_so() -> None:
    spec = LatentSpec(2, 4)
    mean = torch.randn(1, 2, 4, 4).half()
    moments = torch.cat((mean, torch.full_like(mean, NO_VARIANCE_LOG_VARIANCE)), dim=1)
    assert moments.shape[1:] == spec.moments_shape
    latent = sample_latent(moments, torch.randn(1, 2, 4, 4), spec)
    assert latent.dtype == torch.float32
    torch.testing.assert_close(latent, mean.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [(0.0,), (-1.0,), (math.nan,), (math.inf,), (1.0, 1.0, 0.0, 1.0)])
def test_a_scale_that_cannot_be_is_refused(scale: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"latent scale is .*, which is not a number above 0; give such a number"):
        LatentSpec(4, 8, scale)
    with pytest.raises(InputError, match="latent shift is nan, which is not a finite number"):
        LatentSpec(4, 8, (1.0,), (math.nan,))
