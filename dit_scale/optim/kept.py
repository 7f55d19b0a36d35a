"""What an optimizer will keep, compute and send, before it is built."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from dit_scale.optim.description import Group, members_of
from dit_scale.optim.trial import try_out

_ALIGNMENT = 2  # ZeRO 1, 2: parts have a multiple of so many elements


class KeptNumbers(NamedTuple):
    """Numbers in fp32 beside the weights, on one rank."""

    state: int
    """From update to update."""
    copies: int
    """Only while weights are updated, by which an update can be put back (``guarded.py``), or of whole matrices."""


class WholeCost(NamedTuple):
    """What updates of whole matrices take (``whole.py``), each on the rank that it takes most of."""

    flops: int = 0
    put_together: int = 0
    """Numbers in fp32 of matrices that are cut: weights, gradient and state."""
    sent: int = 0
    """Numbers in fp32 that a rank sends to others."""


class Piece(NamedTuple):
    """What a part of parameters that lie one after the other has of one of them."""

    parameter: int
    """Its number among them."""
    numel: int


def cut_flat(sizes: Sequence[int], num_parts: int) -> list[list[Piece]]:
    """Return what each of equal parts has of parameters of so many elements, as ZeRO 1 and 2 cut them."""
    part = _padded(sum(sizes), _ALIGNMENT * num_parts) // num_parts
    pieces: list[list[Piece]] = [[] for _ in range(num_parts)]
    for index, (size, end) in enumerate(zip(sizes, accumulate(sizes), strict=True)):
        begin = end - size
        for rank in range(begin // part, (end - 1) // part + 1):
            pieces[rank].append(Piece(index, min(end, (rank + 1) * part) - max(begin, rank * part)))
    return pieces


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
    return KeptNumbers(state, copies + max(largest, whole_cost(groups, parameters, num_parts).put_together))


def whole_cost(groups: Sequence[Group], parameters: Mapping[str, Tensor], num_parts: int | None = None) -> WholeCost:
    """Return what whole matrices take in an update; ``num_parts`` as of ``numbers_kept``."""
    ranks = [WholeCost()] * (num_parts or 1)
    for group, own in zip(groups, members_of(groups, parameters), strict=True):
        if own and group.algorithm.needs_whole:
            shapes = [parameter.shape for parameter in own.values()]
            costs = _costs_of_ranks(group, shapes, len(ranks))
            ranks = [WholeCost(*map(sum, zip(*both, strict=True))) for both in zip(ranks, costs, strict=True)]
    return WholeCost(*map(max, zip(*ranks, strict=True)))


def _costs_of_ranks(group: Group, shapes: Sequence[torch.Size], num_parts: int) -> list[WholeCost]:
    sizes = [shape.numel() for shape in shapes]
    flops = [group.algorithm.flops(shape) for shape in shapes]
    parts = cut_flat(sizes, num_parts)
    holders = [0] * len(sizes)
    for pieces in parts:
        for piece in pieces:
            holders[piece.parameter] += 1
    exchanged = 1 + len(group.algorithm.state_kinds)  # gradient and state; weights are put together with 0
    return [
        WholeCost(
            sum(flops[piece.parameter] for piece in pieces),
            sum((1 + exchanged) * sizes[piece.parameter] for piece in pieces if holders[piece.parameter] > 1),
            sum(exchanged * piece.numel * (holders[piece.parameter] - 1) for piece in pieces),
        )
        for pieces in parts
    ]


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
