"""Items shared among the ranks: which of them are this rank's, and what all ranks made of theirs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from dit_scale.distributed.runtime import World

T = TypeVar("T")


class Share(NamedTuple):
    """A batch of items that is one rank's."""

    own: list[int]
    """Items that no other batch has; none in a batch that is there for its collectives alone."""
    filled: list[int]
    """The same, filled up to the batch size with the last item of all."""


def shares(items: Sequence[int], batch_size: int, world: World, *, is_collective: bool = False) -> Iterator[Share]:
    """Yield this rank's batches; over all ranks each item is in one.

    Batches are cut alike on any number of ranks and dealt in turn, so that the arithmetic does not depend on it. With
    ``is_collective`` all ranks have equally many, for work that needs every rank in each.
    """
    count = -(-len(items) // batch_size)
    rounds = -(-count // world.world_size)
    for number in range(world.rank, rounds * world.world_size if is_collective else count, world.world_size):
        own = list(items[number * batch_size : (number + 1) * batch_size])
        yield Share(own, own + [items[-1]] * (batch_size - len(own)))


def gather_everywhere(value: T, world: World) -> list[T]:
    """Return each rank's value, on every rank (collective)."""
    values: list[Any] = [None] * world.world_size
    dist.all_gather_object(values, value)
    return values


def gather_on_rank_zero(made: Mapping[int, T], world: World) -> dict[int, T]:
    """Return on rank zero what all ranks made, in the order of their keys, and nothing elsewhere (collective)."""
    parts: list[dict[int, T]] | None = [{}] * world.world_size if world.is_rank_zero else None
    dist.gather_object(dict(made), parts, dst=0)
    return dict(sorted((entry for part in parts or [] for entry in part.items()), key=lambda entry: entry[0]))
