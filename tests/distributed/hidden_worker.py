"""A rank that trains on hidden states under every ZeRO stage, and plain PyTorch beside; run under torchrun.

Prints one JSON line on rank zero: for each setting losses and gradient norms of a few steps.
"""

import json
import sys
import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale.config import EngineConfig, TrainSection
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.zero.engine import set_learning_rate
from dit_scale.zero.update_guard import UpdateGuard
from tests.distributed.worker import begin, plain_steps, small_model

BATCH, STEPS, RATE = 4, 3, 1e-3
HIDDEN = (3, 1)  # in this order


def loss_of(network: Any, part: slice) -> Tensor:
    """Return a loss that depends on the output and, each in its own way, on two blocks' tokens."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(BATCH, 4, 8, 8, generator=generator)[part]
    output, (last, first) = network(latent, torch.arange(BATCH)[part], torch.arange(BATCH)[part], hidden=HIDDEN)
    return output.square().mean() + last.tanh().mean() - 3.0 * first.tanh().mean()


def plain() -> dict[str, list[float]]:
    """Return what PyTorch alone makes of the whole batch."""
    model = small_model()
    return plain_steps(model, lambda step: loss_of(model, slice(None)), STEPS, RATE)


def under_deepspeed(stage: Literal[0, 1, 2, 3], every: int, is_compiled: bool, world: World) -> dict[str, list[float]]:
    """Return the same of an engine whose ranks see a part each."""
    train = TrainSection(global_batch_size=BATCH, micro_batch_size_per_gpu=BATCH, learning_rate=RATE)
    config = EngineConfig(zero_stage=stage, precision="fp32", compile=is_compiled, checkpoint_every_blocks=every)
    engine, _ = begin(small_model(), config, train, world)
    gate, size = UpdateGuard(engine), BATCH // world.world_size
    losses, norms = [], []
    for _ in range(STEPS):
        set_learning_rate(engine, RATE)
        loss = loss_of(engine, slice(world.rank * size, (world.rank + 1) * size))
        engine.backward(loss)
        norms.append(gate.step().norm)
        mean = loss.detach() / world.world_size
        dist.all_reduce(mean)
        losses.append(mean.item())
    assert isinstance(engine(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long)), Tensor)
    engine.destroy()
    return {"losses": losses, "norms": norms}


def main(is_compiled: bool) -> None:
    warnings.simplefilter("ignore")
    world = World.from_environment()
    set_threads(world, 1)
    results: dict[str, Any] = {}
    with process_group(world, "cpu"):
        for stage in (0, 1, 2, 3):
            for every in (0, 2):
                torch._dynamo.reset()
                results[f"stage {stage}, checkpointing {every}"] = under_deepspeed(stage, every, is_compiled, world)
        dist.barrier()
        if world.is_rank_zero:
            print(json.dumps({"plain": plain()} | results), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main(is_compiled=sys.argv[1:] == ["compiled"])
