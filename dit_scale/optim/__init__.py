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
from dit_scale.optim.description import Algorithm, Group, begin_state, block_matrices, everything
from dit_scale.optim.kept import KeptNumbers, numbers_kept
from dit_scale.optim.schedule import learning_rate_at

__all__ = [
    "OPTIMIZERS",
    "Algorithm",
    "Group",
    "KeptNumbers",
    "begin_state",
    "block_matrices",
    "build_optimizer",
    "check_stage",
    "everything",
    "groups_of",
    "learning_rate_at",
    "needs_whole",
    "numbers_kept",
]

OPTIMIZERS: dict[str, Callable[[TrainSection], Sequence[Group]]] = {"adamw": adamw.groups, "muon": muon.groups}
"""The choices of ``train.optimizer``: each gives its groups; a parameter belongs to the first that takes it."""


def groups_of(train: TrainSection) -> Sequence[Group]:
    """Return the groups of ``train.optimizer``."""
    return OPTIMIZERS[train.optimizer](train)


def needs_whole(train: TrainSection) -> bool:
    """Whether ``train.optimizer`` needs whole parameters, which only ZeRO 0 gives it."""
    return any(group.algorithm.needs_whole for group in groups_of(train))


def check_stage(train: TrainSection, zero_stage: int) -> None:
    """Refuse, with an InputError, an optimizer that needs whole parameters where ZeRO would hand it parts of them."""
    if zero_stage > 0 and needs_whole(train):
        raise InputError(
            f"train.optimizer={train.optimizer} needs whole matrices, which engine.zero_stage={zero_stage} cuts into "
            f"flat parts; give engine.zero_stage=0 with engine.precision=fp32, or train.optimizer=adamw"
        )
