import math

import pytest
import torch
from torch import Tensor

from dit_scale.diffusion import GaussianDiffusion, total
from dit_scale.diffusion.losses import discretized_gaussian_nll, gaussian_kl
from dit_scale.errors import InputError
from tests.parity import assert_parity, load_tiny

LATENT, NOISE = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
TIME = torch.tensor([0, 1, 500, 999])


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
def test_losses_and_gradients_as_published(name: str) -> None:
    tiny = load_tiny(name)
    latent, noise, time, label = (tiny.io[key] for key in ("x", "noise", "t", "loss_y"))
    diffusion = GaussianDiffusion()
    seen: list[Tensor] = []

    def denoiser(noised: Tensor, time: Tensor) -> Tensor:
        seen.append(noised)
        return tiny.model(noised, time, label)

    terms = diffusion.loss(denoiser, latent, noise, time)
    assert_parity(f"{name}_io q_sample", seen[0], tiny.io["q_sample"])
    assert set(terms) == {"mse", "vb"}
    for part, term in terms.items():
        assert term.weight == 1.0
        assert_parity(f"{name}_io train_{part}", term.value, tiny.io[f"train_{part}"])
    loss = total(terms)
    assert_parity(f"{name}_io train_loss", loss, tiny.io["train_loss"])
    assert_parity(f"{name}.json loss_mean", loss.mean(), tiny.facts["loss_mean"])
    loss.mean().backward()
    norms = {key: value.grad.norm() for key, value in tiny.model.named_parameters() if value.grad is not None}
    assert norms.keys() == tiny.facts["grad_norms"].keys()
    reference = torch.tensor(list(tiny.facts["grad_norms"].values()))
    actual = torch.stack([norms[key] for key in tiny.facts["grad_norms"]])
    assert_parity(f"{name}.json grad_norms", actual, reference)


def true_prediction(prediction: str, noised: Tensor, time: Tensor) -> Tensor:
    """What a perfect network says of LATENT and NOISE, straight from the definitions, in fp64."""
    alpha_bar = torch.from_numpy(GaussianDiffusion().noise_schedule.alphas_cumprod)[time][:, None, None, None]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return {"epsilon": NOISE, "x0": LATENT, "v": alpha * NOISE - sigma * LATENT}[prediction]


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_a_perfect_network_has_no_squared_error(prediction: str) -> None:
    diffusion = GaussianDiffusion(prediction=prediction, learn_sigma=False)
    terms = diffusion.loss(lambda noised, time: true_prediction(prediction, noised, time), LATENT, NOISE, TIME)
    assert terms["mse"].value.max() < 1e-10
    wrong = diffusion.loss(lambda noised, _: torch.zeros_like(noised), LATENT, NOISE, TIME)
    assert wrong["mse"].value.min() > 0.5


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_every_prediction_implies_the_same_latent_and_noise(prediction: str) -> None:
    diffusion = GaussianDiffusion(prediction=prediction, learn_sigma=False)
    time = torch.tensor([5, 100, 500, 800])
    at = diffusion.noise_schedule.tables(LATENT.device).at(time)
    noised = at.alpha * LATENT + at.sigma * NOISE
    x0, epsilon = diffusion.x0_and_epsilon(true_prediction(prediction, noised, time), noised, at)
    torch.testing.assert_close(x0, LATENT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(epsilon, NOISE, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_the_bound_is_least_for_the_true_posterior(prediction: str) -> None:
    def bound(range_logit: float, offset: float) -> Tensor:
        def denoiser(noised: Tensor, time: Tensor) -> Tensor:
            exact = true_prediction(prediction, noised, time).float() + offset
            return torch.cat([exact, torch.full_like(exact, range_logit)], dim=1)

        vb = GaussianDiffusion(prediction=prediction).loss(denoiser, LATENT, NOISE, TIME)["vb"].value
        return vb[1:]  # at timestep 0 the bound is a likelihood, not a divergence

    assert bound(-1.0, 0.0).max() < 1e-5  # the lower bound of the range is the posterior's variance
    assert bound(1.0, 0.0)[0] > 0.1  # at timestep 1, where the two ends of the range are far apart
    assert (bound(-1.0, 0.5) > bound(-1.0, 0.0)).all()


def test_the_bound_teaches_only_the_variance() -> None:
    output = torch.randn(4, 8, 8, 8, requires_grad=True)
    GaussianDiffusion().loss(lambda *_: output, LATENT, NOISE, TIME)["vb"].value.sum().backward()
    assert output.grad is not None
    assert torch.count_nonzero(output.grad[:, :4]) == 0
    assert torch.count_nonzero(output.grad[:, 4:]) > 0


def test_the_bound_is_weighted_by_the_number_of_timesteps() -> None:
    output, time = torch.zeros(4, 8, 8, 8), torch.tensor([1, 50, 100, 249])
    diffusion = GaussianDiffusion(num_timesteps=250)
    at = diffusion.noise_schedule.tables(LATENT.device).at(time)
    noised = at.alpha * LATENT + at.sigma * NOISE
    true_mean = at.posterior_x0 * LATENT + at.posterior_noised * noised
    nats = gaussian_kl(true_mean, at.posterior_log_variance, *diffusion.posterior(output, noised, at))
    vb = diffusion.loss(lambda *_: output, LATENT, NOISE, time)["vb"].value
    torch.testing.assert_close(vb, 0.25 * nats.flatten(1).mean(dim=1) / math.log(2))


def test_losses_are_fp32_for_a_bf16_network() -> None:
    output = torch.randn(4, 8, 8, 8)
    loss = total(GaussianDiffusion().loss(lambda *_: output.bfloat16(), LATENT, NOISE, TIME))
    exact = total(GaussianDiffusion().loss(lambda *_: output.bfloat16().float(), LATENT, NOISE, TIME))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)


def test_without_learned_sigma_the_variance_is_the_posteriors() -> None:
    diffusion = GaussianDiffusion(learn_sigma=False)
    at = diffusion.noise_schedule.tables(LATENT.device).at(TIME)
    posterior = diffusion.posterior(NOISE, LATENT, at)
    expected = torch.from_numpy(diffusion.noise_schedule.posterior_variance)[TIME[1:]].float()
    torch.testing.assert_close(posterior.log_variance.flatten()[1:].exp(), expected)
    assert set(diffusion.loss(lambda *_: NOISE, LATENT, NOISE, TIME)) == {"mse"}


def test_times_cover_every_timestep_alike_and_never_run_over() -> None:
    diffusion = GaussianDiffusion()
    uniform = (torch.arange(4000) + 0.5) / 4000
    assert torch.bincount(diffusion.times_from_uniform(uniform)).tolist() == [4] * 1000
    edges = torch.tensor([0.0, 1 - 2**-24])
    assert diffusion.times_from_uniform(edges).tolist() == [0, 999]


def test_gaussian_kl_agrees_with_torch() -> None:
    mean1, log_variance1, mean2, log_variance2 = torch.randn(4, 100).unbind()
    first = torch.distributions.Normal(mean1, (0.5 * log_variance1).exp())
    second = torch.distributions.Normal(mean2, (0.5 * log_variance2).exp())
    expected = torch.distributions.kl_divergence(first, second)
    actual = gaussian_kl(mean1, log_variance1, mean2, log_variance2)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_discretized_likelihood_sums_to_one_over_the_bins() -> None:
    bins = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, std in ((0.0, 0.1), (0.9, 0.2), (-1.0, 0.05)):
        nll = discretized_gaussian_nll(bins, torch.tensor(mean), torch.tensor(2 * math.log(std)))
        assert torch.exp(-nll).sum().item() == pytest.approx(1, abs=1e-9)
        assert bins[nll.argmin()].item() == pytest.approx(mean, abs=0.11)


def test_bad_options_and_outputs_are_refused() -> None:
    with pytest.raises(InputError, match="prediction 'eps' is unknown"):
        GaussianDiffusion(prediction="eps")
    with pytest.raises(InputError, match="schedule 'linea' is unknown; did you mean 'linear'"):
        GaussianDiffusion(schedule="linea")
    with pytest.raises(InputError, match="has 4 channels where learn_sigma=True needs 8"):
        GaussianDiffusion().loss(lambda *_: NOISE, LATENT, NOISE, TIME)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_min_snr_weighs_the_latents_error_alike_whatever_is_predicted(prediction: str, learn_sigma: bool) -> None:
    """arXiv 2303.09556: whatever is predicted, the latent's squared error has the weight min(SNR, 5)."""
    plain, clipped = (
        GaussianDiffusion(prediction=prediction, learn_sigma=learn_sigma, min_snr_gamma=gamma) for gamma in (0.0, 5.0)
    )
    generator = torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 4, 4, 8, 8, generator=generator).unbind()
    time = torch.tensor([0, 20, 300, 999])
    at = plain.noise_schedule.tables(latent.device).at(time)
    noised = at.alpha * latent + at.sigma * noise
    wrong_latent = latent + 0.1
    wrong_noise = (noised - at.alpha * wrong_latent) / at.sigma
    answer = {"epsilon": wrong_noise, "v": at.alpha * wrong_noise - at.sigma * wrong_latent, "x0": wrong_latent}
    channels = 2 if learn_sigma else 1
    terms, unweighted = (
        one.loss(lambda *_: answer[prediction].repeat(1, channels, 1, 1), latent, noise, time)
        for one in (clipped, plain)
    )
    snr = (at.alpha / at.sigma).square().flatten()
    torch.testing.assert_close(terms["mse"].value, 0.01 * snr.clamp(max=5.0), rtol=1e-2, atol=0)
    assert not torch.allclose(unweighted["mse"].value, terms["mse"].value)
    if learn_sigma:
        assert torch.equal(terms["vb"].value, unweighted["vb"].value)


def test_a_negative_min_snr_gamma_is_refused() -> None:
    with pytest.raises(InputError, match="min_snr_gamma -1 is below 0; 5 is the published value"):
        GaussianDiffusion(min_snr_gamma=-1)
