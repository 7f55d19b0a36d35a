"""Ranks of a small model that count what they tell each other in a step, under each stage; run under torchrun.

    traffic_worker STAGE MICRO_BATCH WIDTH [to-owners]

Prints one JSON line on rank zero: bytes counted, and bytes planned, by kind; seconds each rank expects of 1 GB.
"""

import json
import sys
from collections import Counter

from dit_scale.bench.loop import Loop
from dit_scale.config import EngineConfig
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.distributed.traffic import Traffic
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.planning.communication import collectives_of
from dit_scale.planning.memory import TrainingSetup

LATENTS = LatentSpec(channels=4, size=8)
IMAGES_A_RANK = 4


def main() -> None:
    die_with_parent()
    stage, micro_batch, width = map(int, sys.argv[1:4])
    to_owners = "to-owners" in sys.argv
    world = World.from_environment()
    set_threads(world, 1)
    # 1001 rows of labels, which Loop's classes ask for, and a width that no number of ranks here divides evenly.
    model = DiT(latent_size=8, patch_size=2, hidden_size=width, depth=2, num_heads=4, num_classes=1000)
    with process_group(world, "cpu"):
        owners = to_owners if stage in (1, 2) else None
        engine = EngineConfig(zero_stage=stage, precision="fp32", reduce_to_owners=owners)  # type: ignore[arg-type]
        size = IMAGES_A_RANK * world.world_size
        loop = Loop(model, LATENTS, engine, size, micro_batch, world, "cpu")
        for _ in range(2):
            loop.step()
        with Traffic() as traffic:
            loop.step()
    accumulation = IMAGES_A_RANK // micro_batch
    setup = TrainingSetup(
        micro_batch, world.world_size, stage, 4, accumulation, reduce_to_owners=to_owners, on_gpu=False
    )
    shapes = DiT(latent_size=8, patch_size=2, hidden_size=width, depth=2, num_heads=4, num_classes=1000)
    planned: Counter[str] = Counter()
    for collective in collectives_of(shapes, setup):
        planned[collective.kind] += collective.num_bytes
    if world.is_rank_zero:
        counted = {kind: tally.num_bytes for kind, tally in traffic.tallies.items()}
        print(json.dumps({"counted": counted, "planned": planned}), flush=True)


if __name__ == "__main__":
    main()
