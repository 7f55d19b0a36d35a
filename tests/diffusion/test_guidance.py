from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_scale.diffusion import FlowMatching, GaussianDiffusion, guided, one_by_one, with_null
from dit_scale.diffusion.losses import LabelledDenoiser
from dit_scale.errors import InputError
from tests.networks import guided_by_null
from tests.parity import assert_parity, load_tiny


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
@pytest.mark.parametrize(("scale", "key"), [(4.0, "cfg_out_scale_4"), (1.5, "cfg_out_scale_1p5")])
def test_guidance_as_published(name: str, scale: float, key: str) -> None:
    tiny = load_tiny(name)
    # The published batch is doubled beforehand: its first half is conditional, and only its latents are used.
    noised, time, label = (tiny.io[key].chunk(2)[0] for key in ("cfg_x", "cfg_t", "cfg_y"))
    output = guided_by_null(tiny.model, label, scale)(noised, time)
    conditional, unconditional = tiny.io[key].chunk(2)
    assert_parity(f"{name}_io {key}", output, conditional)
    assert_parity(f"{name}_io {key} second half", output[:, :3], unconditional[:, :3])


class Recorder:
    """A network of 2 latent channels and learned sigma, whose every output channel is 10 + its label."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, noised: Tensor, time: Tensor, label: Tensor) -> Tensor:
        self.batches.append(len(noised))
        assert len(noised) == len(time) == len(label)
        return (10.0 + label)[:, None, None, None].expand(-1, 4, 8, 8)


NOISED, TIME, LABEL = torch.zeros(3, 2, 8, 8), torch.zeros(3), torch.tensor([0, 1, 2])
NULLS = torch.full((3,), 5)


def by_null(network: Recorder, cfg_scale: float, **options: Any) -> LabelledDenoiser:
    alone, pair = partial(network, label=LABEL), with_null(network, LABEL, NULLS)
    return guided(alone, pair, cfg_scale, **options)


def test_both_halves_go_through_in_one_batch() -> None:
    network = Recorder()
    by_null(network, cfg_scale=2.0, channels=1)(NOISED, TIME)
    assert network.batches == [6]


def test_another_model_guides_by_the_same_formula() -> None:
    strong, weak = Recorder(), Recorder()
    alone = partial(strong, label=LABEL)
    pair = one_by_one(alone, lambda noised, time: weak(noised, time, LABEL).square())
    output = guided(alone, pair, cfg_scale=3.0, channels=1)(NOISED, TIME)
    assert strong.batches == weak.batches == [3]
    assert output[:, 0, 0, 0].tolist() == [100 + 3 * (10 - 100), 121 + 3 * (11 - 121), 144 + 3 * (12 - 144)]
    assert output[:, 1, 0, 0].tolist() == [10, 11, 12]


@pytest.mark.parametrize(("channels", "guided_channels"), [(1, [0]), (2, [0, 1]), (None, [0, 1])])
def test_only_the_chosen_latent_channels_are_guided(channels: int | None, guided_channels: list[int]) -> None:
    output = by_null(Recorder(), cfg_scale=3.0, channels=channels)(NOISED, TIME)
    for channel in range(4):
        # unconditional 15 + 3 * (conditional - 15)
        expected = [0.0, 3.0, 6.0] if channel in guided_channels else [10.0, 11.0, 12.0]
        assert output[:, channel, 0, 0].tolist() == expected


def test_impossible_guidance_is_refused() -> None:
    with pytest.raises(InputError, match="guidance of 3 channels does not suit a latent of 2"):
        by_null(Recorder(), cfg_scale=4.0)(NOISED, TIME)


def test_outside_of_the_interval_there_is_one_pass() -> None:
    flow, network = FlowMatching(), Recorder()
    denoiser = by_null(network, 3.0, channels=None, interval=(0.25, 0.75), noise_levels=flow.noise_levels)
    for sit_time in (0.0, 0.2, 0.25, 0.5, 0.75, 0.9):
        denoiser(NOISED, torch.full((3,), sit_time))
    assert network.batches == [3, 3, 6, 6, 6, 3]


def test_an_interval_of_gaussian_diffusion_is_of_its_timesteps() -> None:
    levels = GaussianDiffusion().noise_levels(torch.tensor([0, 999]))
    assert levels.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.8, 0.2)])
def test_an_interval_that_does_not_rise_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="does not rise from 0"):
        by_null(Recorder(), 3.0, interval=interval, noise_levels=FlowMatching().noise_levels)
