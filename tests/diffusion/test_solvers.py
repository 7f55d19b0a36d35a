import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_scale.diffusion import SOLVERS, FlowMatching, GaussianDiffusion
from dit_scale.diffusion.solvers import Solver, defaults_of
from dit_scale.diffusion.solvers.adaptive import dopri5
from dit_scale.diffusion.solvers.flow import euler, heun, midpoint, sde
from dit_scale.diffusion.solvers.gaussian import ddim, ddpm, dpm_solver
from dit_scale.errors import InputError
from tests.networks import guided_by_null
from tests.parity import Tiny, assert_parity, load_tensors, load_tiny

LATENT, NOISE = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()


def sample(tiny: Tiny, solver: Solver, num_sampling_steps: int, cfg_scale: float) -> Tensor:
    noise, label = tiny.io["sample_xT"], tiny.io["sample_y"]
    denoiser = guided_by_null(tiny.model, label, cfg_scale)
    # Drawn for the published, doubled batch; its first half is what is returned.
    return solver(
        GaussianDiffusion(), denoiser, noise, num_sampling_steps, lambda step: tiny.io["ddpm_noises"][step, :2]
    )


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
@pytest.mark.parametrize(
    ("key", "solver", "num_sampling_steps", "cfg_scale"),
    [("ddpm20_cfg4", ddpm, 20, 4.0), ("ddpm20_nocfg", ddpm, 20, 1.0), ("ddim25_cfg4", ddim, 25, 4.0)],
)
def test_gaussian_samples_as_published(
    name: str, key: str, solver: Solver, num_sampling_steps: int, cfg_scale: float
) -> None:
    tiny = load_tiny(name)
    latent = sample(tiny, solver, num_sampling_steps, cfg_scale)
    assert_parity(f"{name}_io {key}", latent, tiny.io[key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "solver", "num_sampling_steps", "cfg_scale"),
    [("ode_euler_26pts_cfg4", euler, 25, 4.0), ("ode_midpoint_11pts_nocfg", midpoint, 10, 1.0)],
)
def test_flow_samples_as_published(key: str, solver: Solver, num_sampling_steps: int, cfg_scale: float) -> None:
    model = load_tiny("tiny_a").model
    io = load_tensors("tiny_a_flow_io")
    denoiser = guided_by_null(model, io["sample_y"], cfg_scale)
    latent = solver(FlowMatching(), denoiser, io["sample_xT"], num_sampling_steps)
    assert_parity(f"tiny_a_flow_io {key}", latent, io[key], rtol=1e-3, atol=1e-3)


class Oracle:
    """A perfect network for data that is LATENT alone: it answers from the noised latent."""

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self.prediction = diffusion.prediction
        self.alpha_bar = torch.from_numpy(diffusion.noise_schedule.alphas_cumprod)

    def __call__(self, noised: Tensor, time: Tensor) -> Tensor:
        alpha_bar = self.alpha_bar[time][:, None, None, None]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        epsilon = (noised.double() - alpha * LATENT) / sigma
        return {"epsilon": epsilon, "x0": LATENT, "v": alpha * epsilon - sigma * LATENT}[self.prediction]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_ddim_recovers_what_an_oracle_knows(prediction: str, schedule: str) -> None:
    diffusion = GaussianDiffusion(prediction=prediction, schedule=schedule, learn_sigma=False)
    latent = ddim(diffusion, Oracle(diffusion), NOISE, 20)
    torch.testing.assert_close(latent, LATENT, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_ddpm_recovers_what_an_oracle_knows(prediction: str) -> None:
    diffusion = GaussianDiffusion(prediction=prediction, learn_sigma=False)
    generator = torch.Generator().manual_seed(1)
    latent = ddpm(diffusion, Oracle(diffusion), NOISE, 20, lambda _: torch.randn(NOISE.shape, generator=generator))
    torch.testing.assert_close(latent, LATENT, rtol=1e-3, atol=1e-3)


def test_ddim_without_model_error_keeps_the_marginals() -> None:
    """For unit Gaussian data the exact epsilon is sigma * x, and every step should keep the variance at 1."""
    diffusion = GaussianDiffusion(learn_sigma=False)
    sigma = torch.from_numpy(1 - diffusion.noise_schedule.alphas_cumprod).sqrt()
    noise = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    latent = ddim(
        diffusion,
        lambda noised, time: sigma[time][:, None, None, None] * noised,
        noise,
        250,
        lambda _: torch.randn(noise.shape, generator=generator),
        eta=1.0,
    )
    assert latent.std().item() == pytest.approx(1, abs=0.02)
    assert abs((latent * noise).mean().item()) < 0.05  # the noise of 250 steps has replaced the first


def test_ddim_with_eta_1_is_ddpm() -> None:
    """DDIM, section 4.1: with eta 1 the process is DDPM's, with the posterior's variance."""
    diffusion = GaussianDiffusion(num_timesteps=10, learn_sigma=False)
    noises = torch.randn(10, *NOISE.shape, generator=torch.Generator().manual_seed(1))
    samples = [
        solver(diffusion, lambda noised, _: 0.3 * noised, NOISE, 10, lambda step: noises[step], **options)
        for solver, options in ((ddpm, {}), (ddim, {"eta": 1.0}))
    ]
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (midpoint, 2), (heun, 2)])
def test_order_of_convergence(solver: Solver, order: int) -> None:
    """On dx/dt = a(t) x with a(t) = 1 + t, x(0) = x(1) exp(-3/2); halving the step divides the error by 2^order."""

    def denoiser(noised: Tensor, sit_time: Tensor) -> Tensor:
        t = 1 - sit_time
        return -((1 + t)[:, None, None, None] * noised)

    noise = torch.ones(1, 1, 1, 1)
    exact = math.exp(-1.5)
    errors = [abs(solver(FlowMatching(), denoiser, noise, steps).item() - exact) for steps in (8, 16)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_keeps_its_signature(name: str) -> None:
    """A bf16 network and bf16 noise still give an fp32 state, no gradient, and a report of every step."""
    gaussian = GaussianDiffusion(learn_sigma=False)
    objective = gaussian if name in gaussian.solvers else FlowMatching()
    assert name in objective.solvers
    states, reports = [], []

    def denoiser(noised: Tensor, time: Tensor) -> Tensor:
        states.append(noised.dtype)
        return (noised * torch.ones(1, requires_grad=True)).bfloat16()

    latent = SOLVERS[name](
        objective,
        denoiser,
        NOISE.bfloat16(),
        5,
        lambda step: NOISE,
        lambda done, total, latent: reports.append((done, total, latent)),
    )
    assert latent.dtype == torch.float32
    assert set(states) == {torch.float32}
    assert not latent.requires_grad
    assert [report[:2] for report in reports] == [(done, 5) for done in range(1, 6)]
    assert torch.equal(reports[-1][2], latent)


def test_each_step_asks_for_its_own_noise_but_the_last() -> None:
    asked = []

    def step_noise(step: int) -> Tensor:
        asked.append(step)
        return NOISE

    ddpm(GaussianDiffusion(learn_sigma=False), lambda noised, _: noised, NOISE, 5, step_noise)
    assert asked == [0, 1, 2, 3]


def test_missing_noise_and_impossible_steps_are_refused() -> None:
    diffusion = GaussianDiffusion(learn_sigma=False)
    with pytest.raises(InputError, match="solver 'ddpm' adds noise at every step but was given none"):
        ddpm(diffusion, lambda noised, _: noised, NOISE, 5)
    with pytest.raises(InputError, match=r"ddim with eta 0\.5 adds noise"):
        ddim(diffusion, lambda noised, _: noised, NOISE, 5, eta=0.5)
    with pytest.raises(InputError, match="takes 300 ddim steps"):
        ddim(diffusion, lambda noised, _: noised, NOISE, 300)
    with pytest.raises(InputError, match="num_sampling_steps 0 is less than 1"):
        euler(FlowMatching(), lambda noised, _: noised, NOISE, 0)


# ------------------------------------------------------------ DPM-Solver++(2M)


def unit_gaussian(diffusion: GaussianDiffusion, std: float):  # type: ignore[no-untyped-def]
    """A perfect network for Gaussian data of this standard deviation, predicting epsilon."""
    alpha_bar = torch.from_numpy(diffusion.noise_schedule.alphas_cumprod)

    def denoiser(noised: Tensor, time: Tensor) -> Tensor:
        at = alpha_bar[time][:, None, None, None]
        return (1 - at).sqrt() / (at * std**2 + 1 - at) * noised

    return denoiser


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_is_that_of_diffusers(steps: int) -> None:
    from diffusers import DPMSolverMultistepScheduler

    diffusion = GaussianDiffusion(learn_sigma=False)
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )
    kept = diffusion.shortened_schedule(str(steps)).timesteps[::-1].copy()
    scheduler.set_timesteps(timesteps=kept.tolist())
    denoiser, latent = unit_gaussian(diffusion, 0.5), NOISE
    for timestep in scheduler.timesteps:
        latent = scheduler.step(denoiser(latent, timestep.expand(len(latent))).float(), timestep, latent).prev_sample
    ours = dpm_solver(diffusion, denoiser, NOISE, steps)
    torch.testing.assert_close(ours, latent, rtol=1e-4, atol=1e-4)


def test_dpm_solver_is_of_second_order() -> None:
    """The exact flow maps noise to ``std`` x noise, but for what of the data is left in it at the last timestep."""
    diffusion = GaussianDiffusion(learn_sigma=False)
    exact = 0.5 * NOISE / math.sqrt(1 - 0.75 * diffusion.noise_schedule.alphas_cumprod[-1])
    errors = {
        (solver, steps): (solver(diffusion, unit_gaussian(diffusion, 0.5), NOISE, steps) - exact).abs().mean().item()
        for solver in (ddim, dpm_solver)
        for steps in (100, 200)
    }
    assert math.log2(errors[ddim, 100] / errors[ddim, 200]) == pytest.approx(1, abs=0.1)
    assert math.log2(errors[dpm_solver, 100] / errors[dpm_solver, 200]) == pytest.approx(2, abs=0.25)
    assert errors[dpm_solver, 100] < errors[ddim, 100] / 2


# ------------------------------------------------------------ flows: adaptive, SDE, shifted steps


def gaussian_flow(std: float):  # type: ignore[no-untyped-def]
    """A perfect network for Gaussian data of this standard deviation; it is told SiT's time and answers as SiT's."""

    def denoiser(noised: Tensor, sit_time: Tensor) -> Tensor:
        t = (1 - sit_time)[:, None, None, None]
        variance = (1 - t) ** 2 * std**2 + t**2
        return -(t - (1 - t) * std**2) / variance * noised

    return denoiser


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
def test_dopri5_keeps_its_tolerance_and_arrives(tolerance: float) -> None:
    """The exact flow of Gaussian data maps noise to ``std`` x noise."""
    latent = dopri5(FlowMatching(), gaussian_flow(0.1), NOISE, 10, tolerance=tolerance)
    assert ((latent - 0.1 * NOISE).abs().max() / 0.1).item() < 20 * tolerance


def test_dopri5_agrees_with_torchdiffeq() -> None:
    from torchdiffeq import odeint

    model = load_tiny("tiny_a").model
    io = load_tensors("tiny_a_flow_io")
    denoiser = guided_by_null(model, io["sample_y"], 1.0)
    with torch.no_grad():
        theirs = odeint(
            lambda t, latent: denoiser(latent, t.expand(len(latent)))[:, :4].float(),
            io["sample_xT"],
            torch.tensor([0.0, 1.0]),
            rtol=1e-6,
            atol=1e-6,
        )[-1]
    ours = dopri5(FlowMatching(), denoiser, io["sample_xT"], 50, tolerance=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("solver", "method"), [(euler, "euler"), (midpoint, "midpoint"), (heun, "heun2")])
@pytest.mark.parametrize("their_shift", [1.0, 0.3])
def test_published_points_are_one_more_than_steps(solver: Solver, method: str, their_shift: float) -> None:
    """SiT, LightningDiT and RAE integrate over linspace(0, 1, points), SiT's time, which LightningDiT shifts by 0.3."""
    from torchdiffeq import odeint

    model = load_tiny("tiny_a").model
    io = load_tensors("tiny_a_flow_io")
    calls: list[float] = []

    def denoiser(noised: Tensor, sit_time: Tensor) -> Tensor:
        calls.append(sit_time[0].item())
        return model(noised, sit_time, io["sample_y"])[:, :4].float()

    points = torch.linspace(0, 1, 6)
    points = their_shift * points / (1 + (their_shift - 1) * points)
    with torch.no_grad():
        theirs = odeint(lambda t, x: denoiser(x, t.expand(len(x))), io["sample_xT"], points, method=method)[-1]
    told, calls[:] = calls[:], []
    ours = solver(FlowMatching(), denoiser, io["sample_xT"], 5, time_shift=1 / their_shift)
    assert calls == pytest.approx(told, abs=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with_a_step_more = solver(FlowMatching(), denoiser, io["sample_xT"], 6, time_shift=1 / their_shift)
    assert (with_a_step_more - theirs).abs().max() > 10 * (ours - theirs).abs().max()


def test_the_published_sde_counts_steps() -> None:
    """SiT's SDE takes one step fewer than points to 0.04, and then its last step: as many passes as it says."""
    told: list[float] = []

    def denoiser(noised: Tensor, sit_time: Tensor) -> Tensor:
        told.append(sit_time[0].item())
        return 0.1 * noised

    sde(FlowMatching(), denoiser, NOISE, 250, lambda _: NOISE)
    assert told == pytest.approx(torch.linspace(0, 1 - 0.04, 250).tolist(), abs=1e-6)


def test_the_steps_of_an_image_do_not_depend_on_its_batch() -> None:
    """The second image's data is narrower and needs more steps; beside it the first stays as it is alone."""
    stds = torch.tensor([0.5, 0.02])

    def denoiser_of(which: list[int], calls: list[int]):  # type: ignore[no-untyped-def]
        def denoiser(noised: Tensor, sit_time: Tensor) -> Tensor:
            calls.append(1)
            std, t = stds[which][:, None, None, None], (1 - sit_time)[:, None, None, None]
            return -(t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2) * noised

        return denoiser

    calls: dict[str, list[int]] = {"both": [], "first": [], "second": []}
    both = dopri5(FlowMatching(), denoiser_of([0, 1], calls["both"]), NOISE[:2], 10)
    first = dopri5(FlowMatching(), denoiser_of([0, 0], calls["first"]), NOISE[[0, 0]], 10)
    second = dopri5(FlowMatching(), denoiser_of([1, 1], calls["second"]), NOISE[[1, 1]], 10)
    assert torch.equal(both[0], first[0])
    assert torch.equal(both[1], second[0])
    assert len(calls["first"]) < len(calls["second"]) == len(calls["both"])


def test_the_sde_keeps_the_marginals() -> None:
    """For Gaussian data the exact velocity leads to data of its spread, whatever noise is added on the way."""
    noise = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)

    def step_noise(_: int) -> Tensor:
        return torch.randn(noise.shape, generator=generator)

    latent = sde(FlowMatching(), gaussian_flow(0.5), noise, 250, step_noise)
    # The last step follows the drift alone, which takes some of the spread: w dt of variance is not put back.
    assert latent.std().item() == pytest.approx(0.5, abs=0.02)
    correlation = (latent * noise).mean().item() / latent.std().item()
    assert abs(correlation) < 0.6
    still = sde(FlowMatching(), gaussian_flow(0.5), noise, 250, step_noise, diffusion_norm=1e-9)
    torch.testing.assert_close(still, euler_like(noise), rtol=1e-4, atol=1e-4)


def euler_like(noise: Tensor) -> Tensor:
    """Without noise the SDE is Euler's method over the SDE's steps."""
    times = [*np.linspace(1, 0.04, 250), 0.0]
    latent, denoiser = noise, gaussian_flow(0.5)
    for time, next_time in pairwise(times):
        t = torch.full((len(noise),), time, dtype=torch.float32)
        latent = latent + (next_time - time) * FlowMatching().velocity(denoiser, latent, t)
    return latent


def test_a_time_shift_moves_the_steps_towards_noise() -> None:
    told: list[float] = []

    def denoiser(noised: Tensor, sit_time: Tensor) -> Tensor:
        told.append(1 - sit_time[0].item())
        return noised

    euler(FlowMatching(), denoiser, NOISE, 4, time_shift=3.0)
    assert told == pytest.approx([3 * t / (1 + 2 * t) for t in (1, 0.75, 0.5, 0.25)])
    for solver in (euler, midpoint, heun, partial(sde, step_noise=lambda _: NOISE)):
        with pytest.raises(InputError, match=r"time_shift 0 is not above 0"):
            solver(FlowMatching(), denoiser, NOISE, 4, time_shift=0)


# ------------------------------------------------------------ shifted and shortened steps of flows


@pytest.mark.parametrize("solver", [euler, midpoint, heun, partial(sde, step_noise=lambda step: NOISE)])
def test_steps_are_shifted_as_the_objective_is_unless_told_otherwise(solver: Solver) -> None:
    told: list[float] = []

    def denoiser(noised: Tensor, time: Tensor) -> Tensor:
        told.append(time[0].item())
        return 0.3 * noised

    plain, shifted = FlowMatching(), FlowMatching(time_shift=3.0)
    by_objective = solver(shifted, denoiser, NOISE, 4)
    assert torch.equal(by_objective, solver(plain, denoiser, NOISE, 4, time_shift=3.0))
    assert torch.equal(solver(plain, denoiser, NOISE, 4), solver(shifted, denoiser, NOISE, 4, time_shift=1.0))
    assert not torch.equal(by_objective, solver(plain, denoiser, NOISE, 4))
    assert defaults_of("heun", shifted) == {"time_shift": 3.0}
    assert defaults_of("heun", plain) == {"time_shift": 1.0}
    assert defaults_of("ddim", GaussianDiffusion()) == {"eta": 0.0}


def test_steps_end_where_they_are_told_to() -> None:
    """With a velocity of 1 the latent falls by the time that was passed through."""
    flow = FlowMatching(time_at_data=0)
    for solver in (euler, midpoint, heun):
        for shift, end in ((1.0, 0.001), (4.0, 0.004 / 1.003)):
            latent = solver(flow, lambda noised, _: torch.ones_like(noised), NOISE, 5, time_shift=shift, end_time=0.001)
            torch.testing.assert_close(NOISE - latent, torch.full_like(NOISE, 1 - end))
    with pytest.raises(InputError, match=r"end_time 1 is not in \[0, 1\); 0 ends at the latent"):
        euler(flow, lambda noised, _: noised, NOISE, 5, end_time=1.0)
