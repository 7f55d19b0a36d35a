"""Token routing: a part of the tokens goes around the middle blocks in training.

TREAD (arXiv 2501.04765) leaves in the places of the others what entered the blocks; SPRINT (arXiv 2510.21986) a learnt
token, and fuses the result with what entered. N samples of T tokens of width D, of which K are kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_scale.errors import InputError
from dit_scale.models.embeddings import Rotation

_DENSE_AT_THE_END = 2
"""Blocks behind a route whose last block nobody names, as in SPRINT."""


@dataclass(frozen=True)
class Route:
    """The blocks that some tokens go around, and what stands in the places of these."""

    from_block: int
    """The first of the blocks, counted from 1."""
    to_block: int | None = None
    """The last of them; None leaves two blocks behind it."""
    fill: Literal["entered", "learnt"] = "entered"
    """What entered; or a learnt token, and then a linear fusion of the result with what entered."""
    ratio: float = 0.5
    """The part of the tokens that goes around, where tokens do; 0 is none."""

    def blocks(self, depth: int) -> range:
        """Return the numbers of the blocks in a network of so many; raises InputError where there are no such ones."""
        last = depth - _DENSE_AT_THE_END if self.to_block is None else self.to_block
        if not 1 <= self.from_block <= last <= depth:
            raise InputError(
                f"a route from block {self.from_block} to block {last} does not fit a network of {depth} blocks; give "
                f"routing.from_block and routing.to_block in this order, between 1 and {depth}"
            )
        return range(self.from_block, last + 1)

    def num_kept(self, num_tokens: int) -> int:
        """Return how many of so many tokens go through the routed blocks.

        Raises InputError where none would go through them, or around them.
        """
        kept = num_tokens - round(self.ratio * num_tokens)
        if self.ratio and not 0 < kept < num_tokens:
            raise InputError(
                f"routing.ratio={self.ratio:g} keeps {kept} of {num_tokens} tokens; give a part that leaves at least "
                f"one token in the routed blocks and at least one out, or 0 for no routing"
            )
        return kept


def routed_blocks(
    route: Route | None, depth: int, hidden: Iterable[int], kept_tokens: Tensor | None, path_dropped: Tensor | None
) -> range:
    """Return the numbers of the routed blocks of a network; none, ahead of the first block, where it has no route.

    Raises InputError where tokens are routed without one, and where ``hidden`` asks for the tokens of a block that sees
    only a part of them.
    """
    if route is None:
        if kept_tokens is not None or path_dropped is not None:
            raise InputError("tokens are routed, but this network has no route; build it with route=Route(…)")
        return range(1, 1)
    routed = route.blocks(depth)
    inside = [number for number in hidden if number in routed]
    if kept_tokens is not None and inside:
        raise InputError(
            f"hidden state {inside[0]} is asked for, but blocks {routed.start} to {routed.stop - 1} are routed and see "
            f"only a part of the tokens; give a block before or behind these"
        )
    return routed


def entering(tokens: Tensor, rotation: Rotation | None, kept_tokens: Tensor | None) -> tuple[Tensor, Rotation | None]:
    """Return the kept ones of tokens [N, T, D], by their places [N, K], and their rotation; None keeps all."""
    if kept_tokens is None:
        return tokens, rotation
    rows = _rows(kept_tokens, tokens.shape[1])
    inside = tokens.flatten(0, 1).index_select(0, rows).unflatten(0, kept_tokens.shape)  # [N, K, D]
    if rotation is None:
        return inside, None
    cosine, sine = rotation
    return inside, (cosine[kept_tokens], sine[kept_tokens])  # 2 x [N, K, d]


class Rejoining(nn.Module):
    """Where the two ways meet: kept tokens go back to their places among the others."""

    def __init__(self, fill: str, hidden_size: int) -> None:
        super().__init__()
        self.is_learnt = fill == "learnt"
        if self.is_learnt:
            self.mask_token = nn.Parameter(torch.empty(hidden_size))
            self.fusion = _Fusion(hidden_size)

    @torch.no_grad()
    def initialize(self) -> None:
        """Have a new network, whose blocks are the identity, make of all tokens, of some and of none the same.

        What is fused is then what entered, or half of it, and a norm follows. Nothing is drawn.
        """
        if self.is_learnt:
            self.mask_token.zero_()
            half = 0.5 * torch.eye(len(self.mask_token), device=self.mask_token.device)
            self.fusion.weight.copy_(torch.cat((half, half), dim=1))
            self.fusion.bias.zero_()

    def forward(
        self, left: Tensor, entered: Tensor, kept_tokens: Tensor | None = None, path_dropped: Tensor | None = None
    ) -> Tensor:
        """Return all tokens [N, T, D], from those that left the routed blocks, [N, K, D], and those that entered.

        ``kept_tokens`` [N, K] are their places, None where K is T. ``path_dropped`` [N] says for which images nothing
        of what left is used.
        """
        other = self.mask_token.expand_as(entered) if self.is_learnt else entered  # [N, T, D]
        if kept_tokens is not None:
            tokens = _put_back(left, other, kept_tokens)  # [N, T, D]
        elif self.is_learnt:
            # At ZeRO 3 a parameter without a gradient is updated by that of the step before: it has one, of 0.
            tokens = left + 0.0 * self.mask_token
        else:
            tokens = left
        if path_dropped is not None:
            tokens = torch.where(path_dropped[:, None, None], other, tokens)
        return self.fusion(tokens, entered) if self.is_learnt else tokens


class _Fusion(nn.Module):
    """A linear layer over two tokens of a place side by side; no ``nn.Linear``, which would draw when it is made."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, 2 * hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, tokens: Tensor, entered: Tensor) -> Tensor:
        """Map two times [N, T, D] to [N, T, D]."""
        return F.linear(torch.cat((tokens, entered), dim=-1), self.weight, self.bias)


def _put_back(left: Tensor, other: Tensor, kept_tokens: Tensor) -> Tensor:
    rows = _rows(kept_tokens, other.shape[1])
    return other.flatten(0, 1).index_copy(0, rows, left.flatten(0, 1)).view(other.shape)  # [N, T, D]


def _rows(kept_tokens: Tensor, num_tokens: int) -> Tensor:
    """Return the rows of kept tokens among those of all images, [N * K]."""
    starts = torch.arange(0, len(kept_tokens) * num_tokens, num_tokens, device=kept_tokens.device)
    return (kept_tokens + starts[:, None]).flatten()
