"""What updates the weights: optimizers described, built, and held to the update guard's verdict; their rate.

To add one: a module beside ``muon.py`` that says which algorithm updates which parameters, a line in ``OPTIMIZERS``,
and its name among the choices of ``train.optimizer``. DeepSpeed is not known here: ``dit_scale.zero`` hands its flat
parts to what this package builds.
"""

from collections.abc import Callable, Sequence

from dit_scale.config import TrainSection
from dit_scale.errors import InputError
from dit_scale.optim import adamw, muon
from dit_scale.optim.building import build_optimizer
from dit_scale.optim.description import Algorithm, Group, begin_state, block_matrices, everything, members_of
from dit_scale.optim.kept import KeptNumbers, WholeCost, cut_flat, numbers_kept, whole_cost
from dit_scale.optim.schedule import learning_rate_at
from dit_scale.optim.whole import WholeMatrices

__all__ = [
    "OPTIMIZERS",
    "Algorithm",
    "Group",
    "KeptNumbers",
    "WholeCost",
    "WholeMatrices",
    "begin_state",
    "block_matrices",
    "build_optimizer",
    "check_stage",
    "cut_flat",
    "everything",
    "groups_of",
    "learning_rate_at",
    "members_of",
    "needs_whole",
    "numbers_kept",
    "own_rates",
    "whole_cost",
]

OPTIMIZERS: dict[str, Callable[[TrainSection], Sequence[Group]]] = {"adamw": adamw.groups, "muon": muon.groups}
"""The choices of ``train.optimizer``: each gives its groups; a parameter belongs to the first that takes it."""


def groups_of(train: TrainSection) -> Sequence[Group]:
    """Return the groups of ``train.optimizer``."""
    return OPTIMIZERS[train.optimizer](train)


def own_rates(train: TrainSection) -> dict[str, float]:
    """Return by name, such as ``muon_learning_rate``, the rates that differ from the run's, as multiples of it."""
    groups = groups_of(train)
    return {f"{it.algorithm.name.lower()}_learning_rate": it.rate_scale for it in groups if it.rate_scale != 1.0}


def needs_whole(train: TrainSection) -> bool:
    """Whether ``train.optimizer`` needs whole matrices, which ZeRO cuts."""
    return any(group.algorithm.needs_whole for group in groups_of(train))


def check_stage(train: TrainSection, zero_stage: int, offload: bool) -> None:
    """Refuse, with an InputError, an optimizer that needs whole matrices where nothing puts them together."""
    if not needs_whole(train):
        return
    if zero_stage == 3:
        raise InputError(
            f"train.optimizer={train.optimizer} needs whole matrices, but engine.zero_stage=3 cuts each of them over "
            f"all ranks; give engine.zero_stage=1 or 2, or train.optimizer=adamw"
        )
    if offload:
        raise InputError(
            f"train.optimizer={train.optimizer} multiplies whole matrices in each update, which is too slow in host "
            f"memory; give engine.offload_optimizer=false, or train.optimizer=adamw"
        )
