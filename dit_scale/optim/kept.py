"""How many numbers an optimizer will keep, before it is built."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dit_scale.optim.description import Group, members_of
from dit_scale.optim.trial import try_out


class KeptNumbers(NamedTuple):
    """Numbers in fp32 beside the weights, on one rank."""

    state: int
    """From update to update."""
    copies: int
    """Only while weights are updated, by which an update can be put back (``guarded.py``)."""


def numbers_kept(
    groups: Sequence[Group], parameters: Mapping[str, Tensor], num_parts: int | None = None
) -> KeptNumbers:
    """Return what groups keep of named parameters, of which only the shapes count.

    ``num_parts`` says that ZeRO lays a group out flat and gives a rank one of so many parts; None leaves all whole.
    """
    state, copies, largest = 0, 0, 0
    for group, own in zip(groups, members_of(groups, parameters), strict=True):
        if not own:
            continue
        sizes = [parameter.numel() for parameter in own.values()]
        tensors = sizes if num_parts is None else [-(-sum(sizes) // num_parts)]
        kinds = len(group.algorithm.state_kinds)
        state += kinds * sum(tensors)
        if not try_out(group.algorithm, torch.device("cpu")).reads_verdict:
            copies += (1 + kinds) * sum(tensors)
            largest = max(largest, *tensors)  # what stays is chosen tensor by tensor
    return KeptNumbers(state, copies + largest)
