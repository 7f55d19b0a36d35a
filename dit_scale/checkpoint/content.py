"""The state that a checkpoint holds, and digests of it that do not depend on who holds what."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale.distributed.fragments import Fragment


@dataclass(frozen=True)
class State:
    """One rank's part of what training changes."""

    shapes: Mapping[str, torch.Size]
    """Of all parameters, whole."""
    owned: Sequence[Fragment]
    """The fragments that this rank writes; over all ranks they cover every parameter once."""
    kinds: Mapping[str, Sequence[Tensor]]
    """By kind (master, exp_avg, exp_avg_sq, ema, …) one tensor for each owned fragment that has it."""
    adam_step: int
    """Updates that the optimizer has counted."""
    names: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Of a kind the parameters that have it; a kind that is not here, all have."""

    def num_bytes(self) -> int:
        """Bytes of the whole state over all ranks, as stored."""
        return 4 * sum(self.shapes[name].numel() for kind in self.kinds for name in self.names_with(kind))

    def names_with(self, kind: str) -> list[str]:
        """Return the parameters that have a kind, in their order."""
        return [name for name in self.shapes if name in self.names.get(kind, self.shapes)]

    def of_kind(self, kind: str) -> Iterator[tuple[Fragment, Tensor]]:
        """Yield this rank's fragments of a kind, each with its tensor."""
        having = self.names.get(kind, self.shapes)
        yield from zip((part for part in self.owned if part.name in having), self.kinds[kind], strict=True)


def content_digests(state: State, group: Any = None) -> dict[str, dict[str, str]]:
    """Return a digest of each parameter of each kind that does not depend on who holds what (collective).

    An order-free sum over (index, bits) modulo 2^64: every single changed element changes it.
    """
    names = {kind: state.names_with(kind) for kind in state.kinds}
    rows = {(kind, name): row for row, (kind, name) in enumerate((k, n) for k in names for n in names[k])}
    sums = torch.zeros(len(rows), dtype=torch.int64)
    for kind in state.kinds:
        for fragment, tensor in state.of_kind(kind):
            sums[rows[kind, fragment.name]] += sum(_digest_parts(tensor, fragment.offset))
    if dist.get_backend(group) == "nccl":
        sums = sums.cuda()
    dist.all_reduce(sums, group=group)
    values = sums.tolist()
    return {kind: {n: f"{values[rows[kind, n]] % (1 << 64):016x}" for n in names[kind]} for kind in state.kinds}


def _digest_parts(tensor: Tensor, offset: int) -> Iterator[Tensor]:
    """Sum bits times an odd number made of the index, in blocks that bound the memory."""
    for start, block in enumerate(tensor.detach().float().split(1 << 22)):
        first = offset + (start << 22)
        index = torch.arange(first, first + block.numel(), device=block.device)
        weight = (index * 0x2545F4914F6CDD1D) | 1
        yield (block.contiguous().view(torch.int32).long() * weight).sum().cpu()
