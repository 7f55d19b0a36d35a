import numpy as np
import pytest
import torch

from dit_scale.diffusion.schedule import build_schedule, linear_betas, space_timesteps
from dit_scale.errors import InputError
from tests.parity import assert_parity, load_json

SPACINGS = load_json("space_timesteps")


def test_linear_tables_as_published() -> None:
    reference = load_json("schedule")
    schedule = build_schedule("linear", 1000)
    of_x0, of_noised = schedule.posterior_mean_coefficients
    tables = {
        "betas": schedule.betas,
        "alphas_cumprod": schedule.alphas_cumprod,
        "posterior_variance": schedule.posterior_variance,
        "posterior_mean_coef1": of_x0,
        "posterior_mean_coef2": of_noised,
        "posterior_log_variance_clipped": schedule.posterior_log_variance,
    }
    for name, table in tables.items():
        chosen = table[reference["indices"]]
        assert_parity(f"schedule.json {name}", chosen, reference[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("respacing", SPACINGS)
def test_spacing_as_published(respacing: str) -> None:
    assert space_timesteps(1000, respacing) == SPACINGS[respacing]


def test_cosine_alpha_falls_as_a_squared_cosine() -> None:
    alphas_cumprod = build_schedule("cosine", 1000).alphas_cumprod
    for step in (0, 250, 500, 900):
        angle = ((step + 1) / 1000 + 0.008) / 1.008 * np.pi / 2
        expected = np.cos(angle) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
        assert alphas_cumprod[step] == pytest.approx(expected, rel=1e-9)
    assert build_schedule("cosine", 1000).betas.max() == 0.999


@pytest.mark.parametrize("num_timesteps", [1, 10, 4000])
def test_betas_stay_below_one_for_any_number_of_steps(num_timesteps: int) -> None:
    betas = linear_betas(num_timesteps)
    assert len(betas) == num_timesteps
    assert 0 < betas.min() <= betas.max() < 1
    assert np.isfinite(build_schedule("linear", num_timesteps).posterior_log_variance).all()


def test_a_respaced_schedule_keeps_alpha_and_remembers_its_timesteps() -> None:
    schedule = build_schedule("linear", 1000)
    shorter = schedule.respaced([0, 40, 999])
    np.testing.assert_allclose(shorter.alphas_cumprod, schedule.alphas_cumprod[[0, 40, 999]])
    assert shorter.tables(torch.device("cpu")).timestep.tolist() == [0, 40, 999]


def test_tables_are_copied_to_a_device_once_and_rounded_from_fp64() -> None:
    schedule = build_schedule("linear", 1000)
    tables = schedule.tables(torch.device("cpu"))
    assert schedule.tables(torch.device("cpu")) is tables
    np.testing.assert_array_equal(tables.alpha.numpy(), np.sqrt(schedule.alphas_cumprod).astype(np.float32))


@pytest.mark.parametrize(
    ("respacing", "message"),
    [
        ("1001", "keeps 1001 of 1000 timesteps; choose a number from 1 to 1000"),
        ("0", "keeps 0 of 1000"),
        ("10,900", "keeps 900 of 500"),
        ("ddim300", "takes 300 ddim steps; the nearest is 334"),
        ("many", "'many' is not like '250'"),
        ("10,,20", "is not like"),
    ],
)
def test_impossible_spacings_are_refused(respacing: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        space_timesteps(1000, respacing)


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="schedule 'cosin' is unknown; did you mean 'cosine'"):
        build_schedule("cosin", 1000)
    with pytest.raises(InputError, match="num_timesteps 0 is less than 1"):
        build_schedule("linear", 0)
