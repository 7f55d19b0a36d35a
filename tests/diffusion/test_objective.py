import pytest

from dit_scale.diffusion import FlowMatching, GaussianDiffusion, build_objective, choose_solver
from dit_scale.diffusion.solvers.flow import euler, heun
from dit_scale.diffusion.solvers.gaussian import ddpm
from dit_scale.errors import InputError


def test_one_set_of_options_serves_both_objectives() -> None:
    options = {"schedule": "cosine", "learn_sigma": False, "time_distribution": "logit_normal"}
    gaussian = build_objective("gaussian", **options)
    assert gaussian == GaussianDiffusion(schedule="cosine", learn_sigma=False)
    assert build_objective("flow", **options) == FlowMatching(time_distribution="logit_normal")


def test_unknown_names_and_options_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="diffusion 'gausian' is unknown; did you mean 'gaussian'"):
        build_objective("gausian")
    with pytest.raises(InputError, match="no option 'learn_sigmas'; did you mean 'learn_sigma'"):
        build_objective("gaussian", learn_sigmas=True)


def test_solvers_are_chosen_among_those_that_fit() -> None:
    assert choose_solver(None, GaussianDiffusion()) is ddpm
    assert choose_solver(None, FlowMatching()) is heun
    assert choose_solver("euler", FlowMatching()) is euler
    with pytest.raises(InputError, match="'euler' is not for this model's objective; choose one of ddpm, ddim"):
        choose_solver("euler", GaussianDiffusion())
    with pytest.raises(
        InputError, match="'ddpm' is not for this model's objective; choose one of euler, midpoint, heun"
    ):
        choose_solver("ddpm", FlowMatching())
    with pytest.raises(InputError, match="solver 'eulr' is unknown; did you mean 'euler'"):
        choose_solver("eulr", FlowMatching())


def test_a_solver_takes_its_own_options_alone() -> None:
    assert choose_solver("ddim", GaussianDiffusion(), eta=0.5).keywords == {"eta": 0.5}  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="solver 'ddpm' does not know eta: it has no options; leave eta out"):
        choose_solver("ddpm", GaussianDiffusion(), eta=0.5)
    with pytest.raises(InputError, match="'dopri5' does not know time_shift: it has only tolerance"):
        choose_solver("dopri5", FlowMatching(), time_shift=2.0)
