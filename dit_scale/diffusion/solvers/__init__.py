"""Solvers: from noise to a latent; interchangeable pure functions of one signature.

Each takes an objective that names it among its ``solvers``; a denoiser ``(latent, time) -> output`` whose
labels and guidance are settled; the initial noise [N, C, S, S]; the number of steps; ``step_noise(step)``, the
noise of each step counted from the noisiest, or None where the solver needs none; and ``on_step(done, total,
latent)``, called after each step. What only some of them know (``eta``, ``time_shift``, …) follows by keyword.
All keep their state in fp32.
"""

import functools
import inspect
from typing import Any

from dit_scale.diffusion.objective import Objective
from dit_scale.diffusion.solvers.adaptive import dopri5
from dit_scale.diffusion.solvers.flow import euler, heun, midpoint, sde
from dit_scale.diffusion.solvers.gaussian import ddim, ddpm, dpm_solver
from dit_scale.diffusion.solvers.interface import OnStep, Solver, StepNoise
from dit_scale.errors import InputError, nearest

__all__ = ["SOLVERS", "OnStep", "Solver", "StepNoise", "choose_solver", "defaults_of", "options_of"]

SOLVERS: dict[str, Solver] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm-solver++": dpm_solver,
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "dopri5": dopri5,
    "sde": sde,
}
"""By name; an objective's ``solvers`` says which of them fit it."""


def choose_solver(name: str | None, objective: Objective, **options: float) -> Solver:
    """Return the solver ``name``, or the objective's default, with its options bound.

    Raises InputError where the name does not fit the objective, or an option the solver.
    """
    name = name or objective.default_solver
    if name not in SOLVERS:
        raise InputError(f"solver {name!r} is unknown{nearest(name, objective.solvers)}")
    if name not in objective.solvers:
        fitting = ", ".join(objective.solvers)
        raise InputError(f"solver {name!r} is not for this model's objective; choose one of {fitting}")
    known = options_of(name)
    for option in options:
        if option not in known:
            has = f"has only {', '.join(known)}" if known else "has no options"
            raise InputError(f"solver {name!r} does not know {option}: it {has}; leave {option} out")
    solver: Any = SOLVERS[name]
    return functools.partial(solver, **options) if options else solver


def options_of(name: str) -> dict[str, float | None]:
    """Return the options of the solver ``name`` and their defaults; None is the objective's own, or no such thing."""
    parameters = inspect.signature(SOLVERS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def defaults_of(name: str, objective: Objective) -> dict[str, float]:
    """Return what the options of the solver ``name`` are for an objective where none are given."""
    options = {
        option: getattr(objective, option, None) if default is None else default
        for option, default in options_of(name).items()
    }
    return {option: value for option, value in options.items() if value is not None}
