"""What ranks tell each other: every collective that passes through torch.distributed, counted in bytes."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "reduce", "broadcast", "send"]


@dataclass
class Tally:
    """How often one kind of collective was called, and how many bytes it was about."""

    calls: int = 0
    num_bytes: int = 0
    """Of the whole tensor: what is reduced, what is gathered, what is scattered; or what this rank sends to one."""


class Traffic(TorchDispatchMode):
    """Counts while it is entered: ``with Traffic() as traffic: …``, then ``traffic.tallies``."""

    def __init__(self) -> None:
        super().__init__()
        self.tallies: dict[Kind, Tally] = defaultdict(Tally)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.name() if hasattr(function, "name") else ""
        if name.startswith("c10d::") and (known := _COLLECTIVES.get(name.removeprefix("c10d::").split(".")[0])):
            kind, place = known
            tally = self.tallies[kind]
            tally.calls += 1
            tally.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in _flat(arguments[place]))
        return function(*arguments, **(keywords or {}))


_COLLECTIVES: dict[str, tuple[Kind, int]] = {  # and which argument is the whole tensor
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "reduce_": ("reduce", 0),
    "broadcast_": ("broadcast", 0),
    "send": ("send", 0),
}


def _flat(argument: Any) -> list[Tensor]:
    """Return the tensors of a nested list."""
    if isinstance(argument, Tensor):
        return [argument]
    collect: Callable[[Any], list[Tensor]] = _flat
    return [tensor for part in argument for tensor in collect(part)] if isinstance(argument, Sequence) else []
