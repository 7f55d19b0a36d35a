"""What ranks tell each other in a step, as DeepSpeed 0.19 does it: arithmetic alone, checked against a count.

Bytes are those of the whole tensor that is reduced or gathered; what a rank sends of it in a ring is `sent_bytes`. Of
what ranks send to each other alone, bytes are those of the rank that sends most.
"""

from dataclasses import dataclass
from typing import Literal

from dit_scale.models.dit import DiT
from dit_scale.optim import whole_cost
from dit_scale.parameters import trained
from dit_scale.planning.memory import FP32_BYTES, STAGE_3_PERSISTENT, STAGE_3_REUSE_DISTANCE, TrainingSetup

_ALIGNMENT = 2  # stages 1, 2 pad the flat parameters to a multiple of so many elements a rank
Phase = Literal["forward", "backward", "nothing"]


@dataclass(frozen=True)
class Collective:
    """One kind of communication in a step."""

    kind: Literal["all_reduce", "all_gather", "reduce", "reduce_scatter", "send"]
    what: str
    num_bytes: int
    calls: int
    """About how many."""
    hides_behind: Phase
    """The computation that goes on meanwhile."""
    stays_in_node: bool = False
    """Whether each node's ranks do it among themselves."""

    def sent_bytes(self, world_size: int) -> float:
        """Return what a rank sends."""
        return ring_bytes(self.kind, self.num_bytes, world_size)


def ring_bytes(kind: str, num_bytes: float, world_size: int) -> float:
    """Return the bytes that a rank sends for a collective about ``num_bytes`` in a ring (arXiv 1802.05799, s. 3)."""
    if kind == "send":
        return num_bytes
    share = (world_size - 1) / world_size
    return (2 if kind == "all_reduce" else 1) * share * num_bytes


def collectives_of(model: DiT, setup: TrainingSetup) -> list[Collective]:
    """Return the communication of one step over ``setup.world_size`` ranks; scalars are left out."""
    if setup.world_size == 1:
        return []
    if setup.zero_stage == 3:
        return _stage_3(model, setup)
    total = sum(_trained(model))
    # Every micro step at stage 2, which keeps no whole gradients; once a step at the others. DeepSpeed reduces to all
    # ranks, and each takes its part, which sends twice of what a reduce-scatter would; or to each part's owner.
    reductions = setup.gradient_accumulation_steps if setup.zero_stage == 2 else 1
    num_bytes = reductions * setup.bytes_per_number * total
    calls = reductions * _calls(total, setup)
    if setup.zero_stage and setup.reduce_to_owners:
        gradients = Collective("reduce", "gradients", num_bytes, calls + reductions * setup.world_size, "backward")
    else:
        gradients = Collective("all_reduce", "gradients", num_bytes, calls, "backward")
    if setup.zero_stage == 0:
        return [gradients]
    padded = _padded(total, _ALIGNMENT * setup.world_size)
    weights = setup.bytes_per_number * padded
    found = [gradients, Collective("all_gather", "updated weights", weights, _calls(padded, setup), "nothing")]
    pieces = FP32_BYTES * whole_cost(setup.groups, trained(model), setup.world_size).sent
    if pieces:
        found.append(Collective("send", "pieces of matrices that Muon needs whole", pieces, 1, "nothing"))
    return found


def _stage_3(model: DiT, setup: TrainingSetup) -> list[Collective]:
    """Stage 3: weights are gathered where they are used, small ones once a step; gradients go to their owners."""
    number, micro_steps = setup.bytes_per_number, setup.gradient_accumulation_steps
    sizes = [_padded(parameter.numel(), setup.world_size) for parameter in model.parameters()]
    small = sum(size for size in sizes if size <= STAGE_3_PERSISTENT)
    large = sum(sizes) - small
    # What comes again within so many parameters is kept from forward to backward: the last half of that distance.
    again = max(0, large - STAGE_3_REUSE_DISTANCE // 2)
    trained = sum(_padded(size, setup.world_size) for size in _trained(model))
    calls = _calls(large, setup) + len(model.blocks)
    found = [
        Collective("all_gather", "weights for forward", micro_steps * number * large, micro_steps * calls, "forward"),
        Collective(
            "all_gather",
            "weights for backward",
            micro_steps * number * again,
            micro_steps * calls,
            "backward",
            stays_in_node=setup.node_size > 0,
        ),
        Collective("all_gather", "small updated weights", number * small, 1, "nothing"),
        Collective(
            "reduce_scatter",
            "gradients",
            micro_steps * number * trained,
            micro_steps * _calls(trained, setup),
            "backward",
        ),
    ]
    return [collective for collective in found if collective.num_bytes]


def _trained(model: DiT) -> list[int]:
    return [parameter.numel() for parameter in trained(model).values()]


def _calls(elements: int, setup: TrainingSetup) -> int:
    return max(1, -(-elements // setup.bucket_elements))


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
