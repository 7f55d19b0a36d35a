"""Optimizers built from their description."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from dit_scale.errors import InputError
from dit_scale.optim.description import Group, members_of
from dit_scale.optim.guarded import GuardedOptimizer, Part
from dit_scale.optim.trial import try_out


def build_optimizer(
    groups: Sequence[Group], parameters: Mapping[str, Tensor], learning_rate: float, device: torch.device
) -> Optimizer:
    """Build what updates named parameters, on a device (offloaded ones come there), and obeys a guard's verdict.

    The guard says ``optimizer.found_inf`` (fp32 [], not 0 for an update to discard) and ``optimizer.grad_scale`` (by
    which gradients are divided), as a gradient scaler does. Each parameter group knows its ``names``, ``state_kinds``,
    ``rate_scale`` and whether it ``counts`` its updates. Raises InputError where an algorithm cannot be held to that.
    """
    members = members_of(groups, parameters)
    parts: list[Part] = []
    for algorithm in dict.fromkeys(group.algorithm for group, own in zip(groups, members, strict=True) if own):
        tried = try_out(algorithm, device)
        options = [
            {
                "params": list(own.values()),
                "names": tuple(own),
                "state_kinds": algorithm.state_kinds,
                "counts": tried.counts,
                "lr": learning_rate * group.rate_scale,
                "rate_scale": group.rate_scale,
                "weight_decay": group.weight_decay,
            }
            for group, own in zip(groups, members, strict=True)
            if own and group.algorithm == algorithm
        ]
        parts.append(Part(algorithm.build(options), tried.reads_verdict, algorithm.needs_whole))
    if not any(group["counts"] for part in parts for group in part.optimizer.param_groups):
        raise InputError(
            f"{' and '.join(group.algorithm.name for group in groups)} keep no count of updates ('step'), by which "
            f"runs resume; have an algorithm that keeps one update some of the parameters"
        )
    first, *others = parts
    is_enough = first.reads_verdict and not first.needs_whole and not others
    return first.optimizer if is_enough else GuardedOptimizer(parts)
