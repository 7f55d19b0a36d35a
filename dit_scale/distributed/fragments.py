"""Parts of named parameters that ranks hold: where each lies, and whole parameters made of all of them.

Checkpoints and averages are written in these terms, (parameter, offset), so they depend neither on the number of ranks
nor on the ZeRO stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """Elements [offset, offset + numel) of a flattened parameter, at [start, …) of flat tensor number ``flat``."""

    name: str
    offset: int
    numel: int
    flat: int
    start: int

    def of(self, flats: Sequence[Tensor]) -> Tensor:
        """Return the fragment's view, [numel], in a list of flat tensors."""
        return flats[self.flat].narrow(0, self.start, self.numel)


def laid_out(
    owned: Sequence[Fragment], tensors: Sequence[Tensor], shapes: dict[str, torch.Size], device: torch.device | str
) -> dict[str, Tensor]:
    """Return this rank's fragments in their places of whole, flat parameters, with 0 elsewhere."""
    whole = {name: torch.zeros(shape.numel(), device=device) for name, shape in shapes.items()}
    for fragment, tensor in zip(owned, tensors, strict=True):
        whole[fragment.name].narrow(0, fragment.offset, fragment.numel).copy_(tensor)
    return whole


def completed(parts: dict[str, Tensor], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Return whole parameters: what each rank laid out, with the other ranks' fragments filled in (collective)."""
    for part in parts.values():  # each element is nonzero on one rank at most, so the sum is exact
        dist.all_reduce(part)
    return {name: parts[name].view(shape) for name, shape in shapes.items()}


def share(fragments: Sequence[Fragment], rank: int, world_size: int) -> list[Fragment]:
    """Cut replicated fragments so that each rank owns an equal, contiguous part of all elements."""
    total = sum(fragment.numel for fragment in fragments)
    begin, end = total * rank // world_size, total * (rank + 1) // world_size
    found, position = [], 0
    for fragment in fragments:
        first, last = max(begin, position), min(end, position + fragment.numel)
        if first < last:
            skipped = first - position
            found.append(
                Fragment(
                    fragment.name, fragment.offset + skipped, last - first, fragment.flat, fragment.start + skipped
                )
            )
        position += fragment.numel
    return found
