"""What is learnt and how it is sampled: Gaussian diffusion and flow matching behind one interface.

Nothing here draws a random number: times and noise are passed in.
"""

from dit_scale.diffusion.flow import FlowMatching
from dit_scale.diffusion.gaussian import GaussianDiffusion
from dit_scale.diffusion.guidance import Pair, guided, one_by_one, with_null
from dit_scale.diffusion.losses import Term, Terms, total
from dit_scale.diffusion.objective import OBJECTIVES, Objective, build_objective
from dit_scale.diffusion.solvers import SOLVERS, choose_solver

__all__ = [
    "OBJECTIVES",
    "SOLVERS",
    "FlowMatching",
    "GaussianDiffusion",
    "Objective",
    "Pair",
    "Term",
    "Terms",
    "build_objective",
    "choose_solver",
    "guided",
    "one_by_one",
    "total",
    "with_null",
]
