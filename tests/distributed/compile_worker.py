"""A process that trains compiled blocks under every ZeRO stage and counts what the compiler does.

Prints one JSON line: for each stage and checkpointing the graphs, the recompilations, and the losses beside those
of blocks that are not compiled.
"""

import json
import warnings
from collections import Counter
from typing import Any, Literal

import torch
import torch._dynamo
from torch._dynamo.utils import counters

from dit_scale.conditioning import Labels
from dit_scale.config import EngineConfig, TrainSection
from dit_scale.diffusion import build_objective
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.training.loss import LossFunction
from dit_scale.training.step import compute_gradient
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.update_guard import UpdateGuard
from tests.distributed.worker import LATENTS, batch_at, begin, small_model

BATCH, STEPS = 4, 3


def losses_of(stage: Literal[0, 1, 2, 3], every: int, is_compiled: bool, world: World) -> list[float]:
    """Return the losses of a few steps; labels are dropped in some and not in others."""
    train = TrainSection(global_batch_size=BATCH, micro_batch_size_per_gpu=BATCH // 2, learning_rate=1e-3)
    plan = plan_batches(train, world.world_size)
    engine_config = EngineConfig(zero_stage=stage, precision="fp32", compile=is_compiled, checkpoint_every_blocks=every)
    engine, _ = begin(small_model(), engine_config, train, world)
    gate, loss_function = UpdateGuard(engine), LossFunction(build_objective("gaussian"), LATENTS, 0, 0.5, Labels(5))
    losses = []
    for step in range(STEPS):
        losses.append(compute_gradient(engine, loss_function, batch_at(step, BATCH, world), plan).total.mean().item())
        gate.step()
    engine.destroy()
    return losses


def main() -> None:
    warnings.simplefilter("ignore")
    world = World.from_environment()
    set_threads(world, 1)
    results: dict[str, Any] = {}
    with process_group(world, "cpu"):
        for stage in (0, 1, 2, 3):
            for every in (0, 1):
                torch._dynamo.reset()
                counters.clear()
                compiled = losses_of(stage, every, True, world)
                results[f"stage {stage}, checkpointing {every}"] = {
                    "graphs": counters["stats"]["unique_graphs"],
                    "frames": dict(Counter(counters["frames"])),
                    "breaks": list(counters["graph_break"]),
                    "compiled": compiled,
                    "eager": losses_of(stage, every, False, world),
                }
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main()
