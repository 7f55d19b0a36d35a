"""A rank that counts the bytes of every tensor alive in real engines; run under torchrun.

Prints one JSON line on rank zero: for each stage and precision the bytes measured and estimated.
"""

import gc
import json
import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist

from dit_scale.conditioning import Labels
from dit_scale.config import EngineConfig, TrainSection
from dit_scale.diffusion import build_objective
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.models import DiT
from dit_scale.planning.memory import TrainingSetup, estimate_memory
from dit_scale.training.loss import LossFunction
from dit_scale.training.state import TrainingState
from dit_scale.training.step import compute_gradient
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import build_engine
from dit_scale.zero.optimizer_state import OptimizerState
from dit_scale.zero.update_guard import UpdateGuard
from tests.distributed.worker import LATENTS, batch_at

BATCH, MICRO_BATCH, BUCKET = 8, 2, 100_000


def live_bytes() -> int:
    """Return the bytes of all storages that some tensor of this process holds."""
    gc.collect()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            for tensor in (thing, thing.grad) if thing.is_leaf else (thing,):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def measure(stage: Literal[0, 1, 2, 3], precision: Literal["fp32", "bf16"], world: World) -> tuple[int, int]:
    """Return the most bytes held between backward and update, and the estimate of the same."""
    before = live_bytes()
    model = DiT(latent_size=8, patch_size=2, hidden_size=384, depth=3, num_heads=6, num_classes=5)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    train = TrainSection(global_batch_size=BATCH, micro_batch_size_per_gpu=MICRO_BATCH)
    plan = plan_batches(train, world.world_size)
    config = EngineConfig(zero_stage=stage, precision=precision, bucket_elements=BUCKET if stage else None)
    setup = TrainingSetup(
        micro_batch_size=MICRO_BATCH,
        world_size=world.world_size,
        zero_stage=stage,
        bytes_per_number=2 if precision == "bf16" else 4,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        bucket_elements=BUCKET,
        on_gpu=False,
    )
    estimate = estimate_memory(model, setup)
    engine = build_engine(model, config, train, plan, world, "cpu")
    state = TrainingState(OptimizerState(engine), train)
    state.start_from(weights)
    del weights
    gate = UpdateGuard(engine)
    loss_function, seen = LossFunction(build_objective("gaussian"), LATENTS, 0, 0.1, Labels(5)), []
    update: Any = engine.step

    def step_that_counts() -> None:
        seen.append(live_bytes() - before)
        update()

    compute_gradient(engine, loss_function, batch_at(0, BATCH, world), plan)
    gate.step()  # after it Adam has its moments
    engine.step = step_that_counts
    compute_gradient(engine, loss_function, batch_at(1, BATCH, world), plan)
    gate.step()
    held = estimate.states + estimate.gradients
    if stage == 3:  # its bucket is never let go
        held += estimate.buckets
    engine.step = update
    engine.destroy()
    return max(seen), held


def main() -> None:
    warnings.simplefilter("ignore")
    world = World.from_environment()
    set_threads(world, 1)
    with process_group(world, "cpu"):
        results = {
            f"{stage} {precision}": measure(stage, precision, world)
            for stage in (0, 1, 2, 3)
            for precision in ("fp32", "bf16")
            if (stage, precision) != (0, "bf16")
        }
        dist.barrier()
        if world.is_rank_zero:
            print(json.dumps(results), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main()
