import math

import pytest
import torch

from dit_scale.diffusion import FlowMatching, total
from dit_scale.errors import InputError
from tests.parity import assert_parity, load_tensors, load_tiny

LATENT, NOISE = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()


def test_velocity_and_loss_as_published() -> None:
    model = load_tiny("tiny_a").model
    io = load_tensors("tiny_a_flow_io")
    latent, noise, time = io["x1"], io["x0"], 1 - io["t"]  # SiT's time runs from noise to data
    terms = FlowMatching().loss(lambda noised, t: model(noised, t, io["y"]), latent, noise, time)
    assert_parity("tiny_a_flow_io loss", total(terms), io["loss"])
    noised = (1 - time)[:, None, None, None] * latent + time[:, None, None, None] * noise
    velocity = FlowMatching().velocity(lambda noised, t: model(noised, t, io["y"]), noised, time)
    assert_parity("tiny_a_flow_io velocity", -velocity, io["velocity"])


def test_a_perfect_network_has_no_loss() -> None:
    """The network speaks SiT's language: told 1 - t, it answers with the velocity towards the data."""
    told = []

    def denoiser(noised: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        told.append(time)
        return torch.cat([LATENT - NOISE, torch.full_like(LATENT, 7.0)], dim=1)

    terms = FlowMatching().loss(denoiser, LATENT, NOISE, torch.tensor([0.0, 0.25, 1.0]))
    assert set(terms) == {"mse"}
    assert total(terms).max() < 1e-12
    assert told[0].tolist() == [1.0, 0.75, 0.0]


def test_the_network_sees_the_latent_at_0_and_noise_at_1() -> None:
    seen = []

    def denoiser(noised: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.append(noised)
        return noised

    FlowMatching().loss(denoiser, LATENT, NOISE, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(seen[0], torch.stack([LATENT[0], (LATENT[1] + NOISE[1]) / 2, NOISE[2]]))


def test_velocity_and_losses_are_fp32_for_a_bf16_network() -> None:
    velocity = FlowMatching().velocity(lambda noised, _: noised.bfloat16(), NOISE, torch.rand(3))
    assert velocity.dtype == torch.float32
    terms = FlowMatching().loss(lambda noised, _: noised.bfloat16(), LATENT, NOISE, torch.rand(3))
    assert total(terms).dtype == torch.float32


def test_uniform_times_are_the_draws() -> None:
    uniform = torch.tensor([0.0, 0.3, 0.999])
    assert torch.equal(FlowMatching().times_from_uniform(uniform), uniform)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5)])
def test_logit_normal_times_invert_their_distribution_function(mean: float, std: float) -> None:
    flow = FlowMatching(time_distribution="logit_normal", logit_mean=mean, logit_std=std)
    uniform = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    times = flow.times_from_uniform(uniform)
    # P(t <= x) = Phi((logit(x) - mean) / std)
    scores = [(math.log(t / (1 - t)) - mean) / std for t in times.tolist()]
    back = [0.5 * (1 + math.erf(score / math.sqrt(2))) for score in scores]
    torch.testing.assert_close(torch.tensor(back, dtype=torch.float64), uniform)


def test_logit_normal_times_are_finite_at_the_edges() -> None:
    times = FlowMatching(time_distribution="logit_normal").times_from_uniform(torch.tensor([0.0, 1 - 2**-24]))
    assert 0 < times[0] < 0.01
    assert 0.99 < times[1] < 1


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="time_distribution 'logitnormal' is unknown; did you mean 'logit_normal'"):
        FlowMatching(time_distribution="logitnormal")
    with pytest.raises(InputError, match="logit_std 0 is not above 0"):
        FlowMatching(logit_std=0)
