import math

import pytest
import torch

from dit_scale.diffusion import FlowMatching, total
from dit_scale.diffusion.solvers.flow import euler
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


# ------------------------------------------------------------ times


def test_shifted_times_are_those_of_a_moved_logit_mean() -> None:
    """Shift by s adds ln s to the logit; of uniform times, too, which stay no logit-normal."""
    uniform = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    moved = FlowMatching(time_distribution="logit_normal", logit_mean=math.log(6.9282))
    shifted = FlowMatching(time_distribution="logit_normal", time_shift=6.9282)
    torch.testing.assert_close(shifted.times_from_uniform(uniform), moved.times_from_uniform(uniform))
    times = FlowMatching(time_shift=4.0).times_from_uniform(uniform)
    torch.testing.assert_close(times.logit(), uniform.logit() + math.log(4.0))


@pytest.mark.parametrize("interval", [(0.0, 0.8), (0.25, 1.0), (0.2, 0.6)])
@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_truncated_times_are_those_of_the_distribution_that_lie_inside(
    distribution: str, interval: tuple[float, float]
) -> None:
    uniform = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:-1]
    whole = FlowMatching(time_distribution=distribution, logit_mean=0.5, logit_std=0.8)
    flow = FlowMatching(time_distribution=distribution, logit_mean=0.5, logit_std=0.8, time_interval=interval)
    times, all_times = flow.times_from_uniform(uniform), whole.times_from_uniform(uniform)
    inside = all_times[(all_times >= interval[0]) & (all_times <= interval[1])]
    shares = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(times.quantile(shares), inside.quantile(shares), rtol=1e-3, atol=0)
    assert interval[0] <= times.min() + 1e-9 and times.max() <= interval[1] + 1e-9


def test_times_are_truncated_before_they_are_shifted() -> None:
    flow = FlowMatching(time_interval=(0.2, 0.8), time_shift=3.0)
    times = flow.times_from_uniform(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(times, torch.tensor([0.6 / 1.4, 0.75, 2.4 / 2.6], dtype=torch.float64))


# ------------------------------------------------------------ what the network is told, and answers


@pytest.mark.parametrize("time_at_data", [0, 1])
@pytest.mark.parametrize("prediction", ["velocity", "x0"])
def test_a_perfect_network_of_each_kind_has_no_loss_and_brings_noise_to_the_latent(
    prediction: str, time_at_data: int
) -> None:
    flow = FlowMatching(prediction=prediction, time_at_data=time_at_data, cosine_weight=1.0)
    told = []

    def denoiser(noised: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        told.append(time)
        answer = {"x0": LATENT, "velocity": LATENT - NOISE if time_at_data else NOISE - LATENT}[prediction]
        return torch.cat([answer, torch.full_like(answer, 7.0)], dim=1)

    time = torch.tensor([0.01, 0.25, 1.0])
    terms = flow.loss(denoiser, LATENT, NOISE, time)
    assert terms["mse"].value.max() < 1e-9
    assert terms["cosine"].value.max() < 1e-5
    torch.testing.assert_close(told[0], 1 - time if time_at_data else time)
    assert torch.equal(flow.noise_levels(told[0]), 1 - (1 - time) if time_at_data else time)
    torch.testing.assert_close(euler(flow, denoiser, NOISE, 10), LATENT, rtol=1e-4, atol=1e-4)


def test_the_velocity_loss_of_a_latent_is_its_error_over_the_time() -> None:
    """JiT, arXiv 2511.13720: the loss on v weighs the latent's error by 1 / t², and by no more than 400."""
    flow = FlowMatching(prediction="x0")
    time = torch.tensor([0.001, 0.5, 1.0])
    loss = flow.loss(lambda noised, _: LATENT + 0.1, LATENT, NOISE, time)["mse"].value
    torch.testing.assert_close(loss, 0.01 / torch.tensor([0.05, 0.5, 1.0]) ** 2, rtol=1e-4, atol=0)


def test_what_no_flow_has_is_refused() -> None:
    for options, sentence in (
        ({"time_shift": 0}, "time_shift 0 is not above 0"),
        ({"prediction": "epsilon"}, "prediction 'epsilon' is unknown"),
        ({"time_at_data": 2}, "time_at_data 2 is neither 1"),
        ({"time_interval": (0.5, 0.5)}, "does not rise within 0 and 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            FlowMatching(**options)  # type: ignore[arg-type]
