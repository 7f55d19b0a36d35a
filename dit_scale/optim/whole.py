"""Whole matrices for an algorithm that needs them, where ZeRO 1 and 2 give a rank one flat part of each group.

A part begins and ends anywhere, and so cuts matrices. A matrix inside it is a view of it. Of one that is cut, each rank
that holds a piece gets the others' pieces of gradient and state, has the algorithm update all of it, and keeps its own
piece of what comes out: what is computed of a matrix depends neither on how many ranks there are nor on where they cut.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from dit_scale.distributed.fragments import Fragment


class _Cut(NamedTuple):
    """A matrix of which this rank holds a piece."""

    fragment: Fragment
    pieces: list[Tensor]
    """Of weights, gradient and state: views of the flat parts, [numel]."""
    whole: Tensor
    """The same of the whole matrix, a row each, [rows, elements]; of other ranks' weights there is 0."""


class WholeMatrices:
    """Has an optimizer of flat parts update whole matrices."""

    def __init__(self, fragments: Sequence[Fragment], shapes: Mapping[str, torch.Size]):
        """``fragments`` are what this rank holds of parameters of these shapes (collective)."""
        self._fragments, self._shapes = fragments, shapes
        cut = [fragment for fragment in fragments if fragment.numel < shapes[fragment.name].numel()]
        everyone: list[list[Fragment]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, cut)
        self._holders: dict[str, dict[int, Fragment]] = defaultdict(dict)
        """Of each matrix that is cut, by rank."""
        for rank, theirs in enumerate(everyone):
            for fragment in theirs:
                self._holders[fragment.name][rank] = fragment

    @torch.no_grad()
    def update(self, optimizer: Optimizer) -> None:
        """Take an optimizer's step on the matrices in its flat parts (collective)."""
        groups, flat_state = optimizer.param_groups, optimizer.state
        flats = [group["params"] for group in groups]
        optimizer.state, cuts = defaultdict(dict), []
        for group, (flat,) in zip(groups, flats, strict=True):
            if flat.grad is not None:
                group["params"] = []
                cuts += self._lay_out(group, flat, flat_state[flat], optimizer.state)
        self._exchange(cuts)
        optimizer.step()
        for cut in cuts:
            own = cut.whole.narrow(1, cut.fragment.offset, cut.fragment.numel)
            torch._foreach_copy_(cut.pieces, list(own))
        optimizer.state = flat_state
        for group, flat in zip(groups, flats, strict=True):
            group["params"] = flat

    def _lay_out(
        self, group: dict[str, Any], flat: Tensor, kept: Mapping[str, Tensor], state: dict[Tensor, Any]
    ) -> list[_Cut]:
        """Put the matrices of a group in place of its flat part, with gradient and state; return those that are cut."""
        kinds, cuts = group["state_kinds"], []
        assert flat.grad is not None
        sources = [flat.detach(), flat.grad, *(kept[kind] for kind in kinds)]
        for fragment in (fragment for fragment in self._fragments if fragment.name in group["names"]):
            shape = self._shapes[fragment.name]
            rows = [source.narrow(0, fragment.start, fragment.numel) for source in sources]
            if fragment.name in self._holders:
                whole = flat.new_zeros(len(rows), shape.numel())
                torch._foreach_copy_(list(whole.narrow(1, fragment.offset, fragment.numel)), rows)
                cuts.append(_Cut(fragment, rows, whole))
                rows = list(whole)
            matrix, matrix.grad, *values = (row.view(shape) for row in rows)
            state[matrix] = dict(zip(kinds, values, strict=True))
            group["params"].append(matrix)
        return cuts

    def _exchange(self, cuts: Sequence[_Cut]) -> None:
        """Fill in what other ranks hold of gradients and state; two ranks name what they share in the same order."""
        operations = []
        for cut in cuts:
            for rank, theirs in self._holders[cut.fragment.name].items():
                if rank == dist.get_rank():
                    continue
                for piece, row in zip(cut.pieces[1:], cut.whole[1:], strict=True):
                    there = row.narrow(0, theirs.offset, theirs.numel)
                    operations += [dist.P2POp(dist.isend, piece, rank), dist.P2POp(dist.irecv, there, rank)]
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
