"""An optimizer described: groups of parameters, and the algorithm that updates each of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Rule = Callable[[str, torch.Size], bool]
"""Whether a parameter of this name and shape belongs to a group."""


@dataclass(frozen=True)
class Algorithm:
    """How parameters are updated, and what is kept of each of them for that."""

    name: str
    build: Callable[[list[dict[str, Any]]], Optimizer]
    """From parameter groups, each of which has its ``lr`` and ``weight_decay``."""
    state_kinds: tuple[str, ...]
    """What it keeps of a parameter, in that parameter's shape, beside a count ``step``; zeros at first."""
    needs_whole: bool = False
    """Whether it needs gradient and state of each parameter whole and in their own shape; ``whole.py`` puts together
    what ZeRO 1 and 2 cut. Weights it changes number by number, and it keeps no ``step``."""
    flops: Callable[[torch.Size], int] = lambda _: 0
    """Of the matrix products in one update of a parameter of a shape."""


@dataclass(frozen=True)
class Group:
    """Parameters that are updated alike."""

    takes: Rule
    algorithm: Algorithm
    weight_decay: float = 0.0
    rate_scale: float = 1.0
    """Its learning rate, as a multiple of the run's."""


def members_of(groups: Sequence[Group], parameters: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the parameters of each group: those that it takes and no group before it does."""
    members: list[dict[str, Tensor]] = [{} for _ in groups]
    for name, parameter in parameters.items():
        first = next(index for index, group in enumerate(groups) if group.takes(name, parameter.shape))
        members[first][name] = parameter
    return members


def everything(name: str, shape: torch.Size) -> bool:
    """Take every parameter (that no group before has taken)."""
    return True


def block_matrices(name: str, shape: torch.Size) -> bool:
    """Take the matrices inside blocks: no embedding, no bias, not the last layer."""
    return name.startswith("blocks.") and len(shape) == 2


def begin_state(state: dict[str, Tensor], parameter: Tensor, group: dict[str, Any]) -> None:
    """Fill in what is kept of a parameter, or of a flat part of several, as it is before the first update."""
    if state:
        return
    if group["counts"]:  # on the parameter's device where an update reads it there, else on the CPU
        is_there = group.get("fused") or group.get("capturable")
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if is_there else "cpu")
    state.update({kind: torch.zeros_like(parameter) for kind in group["state_kinds"]})
