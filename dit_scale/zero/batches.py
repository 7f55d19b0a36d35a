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
    images_together: int = 1
    """Neighbours in the stream that no micro batch parts."""

    @property
    def micro_batches(self) -> list[slice]:
        """The parts of a rank's batch, one a micro step."""
        steps, groups = self.gradient_accumulation_steps, self.batch_size_per_rank // self.images_together
        edges = [groups * step // steps * self.images_together for step in range(steps + 1)]
        return [slice(first, last) for first, last in pairwise(edges)]


def plan_batches(train: TrainSection, world_size: int, images_together: int = 1) -> BatchPlan:
    """Split the global batch, ``images_together`` neighbours never parted.

    Raises InputError where the ranks do not divide it, or a part cannot hold the neighbours.
    """
    size = train.global_batch_size
    if size % world_size == 0 and images_together > 1:
        _check_neighbours(train, world_size, images_together)
    if size % world_size:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        near = min(divisors, key=lambda n: (abs(n - world_size), n))
        raise InputError(
            f"train.global_batch_size={size} does not divide over {world_size} ranks; use a multiple of {world_size}, "
            f"such as {-(-size // world_size) * world_size}, or {near} ranks"
        )
    per_rank = size // world_size
    most = train.micro_batch_size_per_gpu // images_together
    return BatchPlan(size, per_rank, -(-(per_rank // images_together) // most), images_together)


def _check_neighbours(train: TrainSection, world_size: int, images_together: int) -> None:
    per_rank, micro = train.global_batch_size // world_size, train.micro_batch_size_per_gpu
    why = f"diffusion.contrastive_weight compares {images_together} neighbouring images"
    if per_rank % images_together:
        raise InputError(
            f"train.global_batch_size={train.global_batch_size} leaves {per_rank} images a rank, but {why}; use a "
            f"multiple of {world_size * images_together}, or diffusion.contrastive_weight=0"
        )
    if micro < images_together:
        raise InputError(
            f"train.micro_batch_size_per_gpu={micro} parts images, but {why}; give {images_together} or more, or "
            f"diffusion.contrastive_weight=0"
        )
