"""A rank that trains with token routing under every ZeRO stage, and plain PyTorch beside; run under torchrun.

    routing_worker FILL [compiled]

Two steps are routed and two are not. Prints one JSON line on rank zero: for each setting losses and gradient norms,
and, where blocks are compiled, the graphs.
"""

import json
import sys
import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters

from dit_scale.conditioning import Labels
from dit_scale.config import EngineConfig, TrainSection
from dit_scale.diffusion import build_objective, total
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.models import DiT, Route
from dit_scale.training.loss import LossFunction
from dit_scale.training.routing import TokenDraws
from dit_scale.training.state import TrainingState
from dit_scale.training.step import compute_gradient
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import build_engine, set_learning_rate
from dit_scale.zero.optimizer_state import OptimizerState
from dit_scale.zero.update_guard import UpdateGuard
from tests.distributed.worker import LATENTS, batch_at, plain_steps
from tests.networks import fill as fill_weights

BATCH, STEPS, ROUTED_STEPS, RATE = 4, 4, 2, 1e-3


def routed_model(fill: Any) -> DiT:
    """Return a model whose every weight counts, with routing of blocks 2 and 3."""
    torch.manual_seed(0)
    route = Route(2, 3, fill)
    model = DiT(latent_size=8, patch_size=2, hidden_size=48, depth=4, num_heads=4, num_classes=5, route=route)
    fill_weights(model, std=0.02)
    return model


def loss_at(step: int, fill: str) -> LossFunction:
    """Return the loss of a step; with a learnt token no path is dropped, so that nothing else teaches it."""
    draws = TokenDraws(num_tokens=16, num_kept=4, num_routed_images=ROUTED_STEPS * BATCH)
    function = LossFunction(build_objective("gaussian"), LATENTS, 0, 0.1, Labels(5), routing=draws)
    return function.at(step * BATCH)


def plain(fill: str) -> dict[str, list[float]]:
    """Return what PyTorch alone makes of the whole batch."""
    model = routed_model(fill)

    def loss_of(step: int) -> Tensor:
        batch = batch_at(step, BATCH, World())
        return total(loss_at(step, fill)(model, batch.moments, batch.conditions, batch.positions)).mean()

    return plain_steps(model, loss_of, STEPS, RATE)


def under_deepspeed(stage: Literal[0, 1, 2, 3], fill: str, compiles: bool, world: World) -> dict[str, Any]:
    """Return the same of an engine whose ranks see a part each, in micro batches, every second block recomputed."""
    torch._dynamo.reset()
    counters.clear()
    train = TrainSection(global_batch_size=BATCH, micro_batch_size_per_gpu=1, learning_rate=RATE, weight_decay=0.0)
    plan = plan_batches(train, world.world_size)
    config = EngineConfig(zero_stage=stage, precision="fp32", compile=compiles, checkpoint_every_blocks=2)
    model = routed_model(fill)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    engine = build_engine(model, config, train, plan, world, "cpu")
    TrainingState(OptimizerState(engine), train).start_from(weights)
    gate = UpdateGuard(engine)
    losses, norms = [], []
    for step in range(STEPS):
        set_learning_rate(engine, RATE)
        found = compute_gradient(engine, loss_at(step, fill), batch_at(step, BATCH, world), plan).total.sum() / BATCH
        norms.append(gate.step().norm)
        dist.all_reduce(found)
        losses.append(found.item())
    graphs = counters["stats"]["unique_graphs"]
    engine.eval()
    with torch.no_grad():  # the blocks that do not run leave ZeRO 3's order of weights as it was
        empty = torch.zeros(2, 0, dtype=torch.long)
        for kept in (empty, None, empty):
            engine(torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long), kept_tokens=kept)
    engine.destroy()
    return {"losses": losses, "norms": norms, "graphs": graphs}


def main(fill: str, compiles: bool) -> None:
    warnings.simplefilter("ignore")
    world = World.from_environment()
    set_threads(world, 1)
    results: dict[str, Any] = {}
    with process_group(world, "cpu"):
        for stage in (1, 3) if compiles else (0, 1, 2, 3):
            results[f"stage {stage}"] = under_deepspeed(stage, fill, compiles, world)  # type: ignore[arg-type]
        dist.barrier()
        if world.is_rank_zero:
            print(json.dumps({"plain": plain(fill)} | results), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main(sys.argv[1], compiles=sys.argv[2:] == ["compiled"])
