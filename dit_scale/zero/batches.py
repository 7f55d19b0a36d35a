"""How a global batch is split over ranks and micro steps."""

from dataclasses import dataclass
from itertools import pairwise

from dit_scale.config import TrainSection
from dit_scale.errors import InputError


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is split: over ranks evenly, over micro steps as evenly as it goes."""

    global_batch_size: int
    batch_size_per_rank: int
    gradient_accumulation_steps: int

    @property
    def micro_batches(self) -> list[slice]:
        """The parts of a rank's batch, one a micro step."""
        steps, size = self.gradient_accumulation_steps, self.batch_size_per_rank
        edges = [size * step // steps for step in range(steps + 1)]
        return [slice(first, last) for first, last in pairwise(edges)]


def plan_batches(train: TrainSection, world_size: int) -> BatchPlan:
    """Split the global batch; raises InputError where the ranks do not divide it."""
    size = train.global_batch_size
    if size % world_size:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        near = min(divisors, key=lambda n: (abs(n - world_size), n))
        raise InputError(
            f"train.global_batch_size={size} does not divide over {world_size} ranks; use a multiple of {world_size}, "
            f"such as {-(-size // world_size) * world_size}, or {near} ranks"
        )
    per_rank = size // world_size
    return BatchPlan(size, per_rank, -(-per_rank // train.micro_batch_size_per_gpu))
