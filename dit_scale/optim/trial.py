"""What an algorithm does with a guard's verdict and with its state: found out at the start, on a small matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dit_scale.errors import InputError
from dit_scale.optim.description import Algorithm


@dataclass(frozen=True)
class Trial:
    """How an algorithm has behaved."""

    reads_verdict: bool
    """Whether ``found_inf`` and ``grad_scale`` do what they do to a fused Adam, or must be done around it."""
    counts: bool
    """Whether it keeps ``step``, a count of updates."""


@cache
def try_out(algorithm: Algorithm, device: torch.device) -> Trial:
    """Update a small matrix; raises InputError where the description is wrong, or nobody could discard an update."""
    weights, state = _updated(algorithm, 1.0, device)
    kinds = set(state) - {"step"}
    if kinds != set(algorithm.state_kinds):
        raise InputError(
            f"{algorithm.name} keeps {sorted(kinds)} of a parameter, and its description says "
            f"{sorted(algorithm.state_kinds)}; name in its state_kinds what checkpoints must keep"
        )
    for kind in kinds:
        if torch.as_tensor(state[kind]).shape != weights.shape:
            raise InputError(
                f"{algorithm.name} keeps '{kind}' in another shape than the parameter's; checkpoints cut what is kept "
                f"as they cut the parameter, so choose one that keeps a number for each of its elements"
            )
    zeros = {kind: torch.zeros_like(torch.as_tensor(value)) for kind, value in state.items()}
    if not _are_alike(_updated(algorithm, 1.0, device, zeros), (weights, state)):
        raise InputError(
            f"what {algorithm.name} keeps does not begin with zeros, as what a run keeps does; choose settings of it "
            f"with which it does"
        )
    reads_verdict = _reads_verdict(algorithm, weights, state)
    if not reads_verdict:
        _check_can_be_put_back(algorithm, weights, state)
    return Trial(reads_verdict, "step" in state)


def _reads_verdict(algorithm: Algorithm, weights: Tensor, state: dict[str, Any]) -> bool:
    """Whether a discarded update changes nothing, and one of twice the gradient, halved, is what was expected."""
    zero, one, two = (torch.tensor(value, device=weights.device) for value in (0.0, 1.0, 2.0))
    try:
        discarded, kept = _updated(algorithm, 1.0, weights.device, found_inf=one)
        halved = _updated(algorithm, 2.0, weights.device, found_inf=zero, grad_scale=two)
    except (AssertionError, RuntimeError):  # with which some of PyTorch's own answer a verdict
        return False
    stays = torch.equal(discarded, torch.ones_like(discarded)) and not any(map(_is_changed, kept.values()))
    return stays and _are_alike(halved, (weights, state))


def _check_can_be_put_back(algorithm: Algorithm, weights: Tensor, state: dict[str, Any]) -> None:
    for kind, value in state.items():
        if not isinstance(value, Tensor) or value.device != weights.device:
            where = f"on {value.device}" if isinstance(value, Tensor) else f"as {type(value).__name__}"
            raise InputError(
                f"{algorithm.name} does not read on {weights.device} whether an update is discarded, and keeps "
                f"'{kind}' {where}, where it cannot be put back without a wait; build it with fused=True or "
                f"capturable=True"
            )


def _updated(
    algorithm: Algorithm,
    gradient: float,
    device: torch.device,
    begin: Mapping[str, Tensor] | None = None,
    **verdict: Tensor,
) -> tuple[Tensor, dict[str, Any]]:
    """Return a matrix of ones after its first update, and what is kept of it then; ``begin`` is kept before."""
    matrix = nn.Parameter(torch.ones(2, 2, device=device))
    matrix.grad = torch.full_like(matrix, gradient)
    optimizer = algorithm.build([{"params": [matrix], "lr": 0.5, "weight_decay": 0.0}])
    optimizer.state[matrix].update(begin or {})
    for name, value in verdict.items():
        setattr(optimizer, name, value)
    optimizer.step()
    return matrix.detach(), dict(optimizer.state[matrix])


def _is_changed(value: Any) -> bool:
    return bool(torch.as_tensor(value).any())


def _are_alike(one: tuple[Tensor, dict[str, Any]], other: tuple[Tensor, dict[str, Any]]) -> bool:
    pairs = [(one[0], other[0]), *((one[1][kind], other[1][kind]) for kind in other[1])]
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)
