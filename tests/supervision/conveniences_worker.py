"""A rank of two that works with the other: first both do, then one fails, then they meet as if nothing were."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from dit_scale.distributed.runtime import World, process_group
from dit_scale.supervision.conveniences import Conveniences


def main() -> None:
    """Check what `together` gives, and print what became of the rank."""
    world = World.from_environment()
    with process_group(world, "cpu", timeout_seconds=30):
        conveniences = Conveniences(Path(sys.argv[1]), world)
        assert conveniences.together("grid", lambda: world.rank + 1) == world.rank + 1

        def work() -> int:
            if world.rank == 1:
                raise MemoryError("no room on this rank")
            return 1

        found = conveniences.together("grid", work, step=7)
        sums = torch.tensor(world.rank + 1.0)
        dist.all_reduce(sums)
        sys.stdout.write(f"rank-{world.rank}-{found}-{sums.item()}\n")


main()
