"""A rank that counts the bytes of every tensor alive in real engines; run under torchrun.

Prints one JSON line on rank zero: for each stage, precision and optimizer the bytes measured and estimated, between
backward and the update, and at most while an optimizer that does not know the verdict updates.
"""

import gc
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from dit_scale.conditioning import Labels
from dit_scale.config import EngineConfig, TrainSection
from dit_scale.diffusion import build_objective
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.models import DiT
from dit_scale.optim import OPTIMIZERS, Algorithm, Group, everything, groups_of
from dit_scale.planning.memory import TrainingSetup, estimate_memory
from dit_scale.training.loss import LossFunction
from dit_scale.training.step import compute_gradient
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.update_guard import UpdateGuard
from tests.distributed.worker import LATENTS, batch_at, begin


def adagrad(train: TrainSection) -> Sequence[Group]:
    """Return one group of an optimizer that keeps one number of each, and does not know the verdict."""
    return [Group(everything, Algorithm("Adagrad", torch.optim.Adagrad, ("sum",)))]


OPTIMIZERS["adagrad"] = adagrad
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


class _Choosing(TorchFunctionMode):
    """Counts while what was updated and what was before lie beside each other, for the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.most_bytes = self._largest = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.where and result.numel() > self._largest:
            self._largest = result.numel()
            self.most_bytes = live_bytes()
        return result


def measure(
    stage: Literal[0, 1, 2, 3], precision: Literal["fp32", "bf16"], optimizer: Any, world: World
) -> dict[str, tuple[int, int]]:
    """Return the most bytes held between backward and update, and in an update, each with the estimate of the same."""
    before = live_bytes()
    model = DiT(latent_size=8, patch_size=2, hidden_size=384, depth=3, num_heads=6, num_classes=5)
    train = TrainSection(global_batch_size=BATCH, micro_batch_size_per_gpu=MICRO_BATCH)
    train = replace(train, optimizer=optimizer)
    plan = plan_batches(train, world.world_size)
    config = EngineConfig(zero_stage=stage, precision=precision, bucket_elements=BUCKET if stage else None)
    setup = TrainingSetup(
        micro_batch_size=MICRO_BATCH,
        world_size=world.world_size,
        zero_stage=stage,
        bytes_per_number=2 if precision == "bf16" else 4,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        bucket_elements=BUCKET,
        groups=groups_of(train),
        on_gpu=False,
    )
    estimate = estimate_memory(model, setup)
    engine, _state = begin(model, config, train, world)  # the averages live as long as it
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
    with _Choosing() as choosing:
        gate.step()
    held = estimate.states + estimate.gradients
    if stage == 3:  # its bucket is never let go
        held += estimate.buckets
    engine.step = update
    engine.destroy()
    found = {"held": (max(seen), held)}
    if optimizer != "adamw":  # which knows the verdict; where ZeRO shards, gradients have gone by then
        most, updating = choosing.most_bytes - before, estimate.states + estimate.update_workspace
        if stage == 0:
            updating += estimate.gradients
        elif len(setup.groups) > 1:  # a bucket holds gradients of several, until the last of them is updated
            updating = min(max(updating, most), updating + estimate.gradients)
        found["updating"] = (most, updating)
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    world = World.from_environment()
    set_threads(world, 1)
    with process_group(world, "cpu"):
        kinds: Any = [(stage, precision, "adamw") for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]
        kinds.remove((0, "bf16", "adamw"))
        kinds += [(0, "fp32", "muon"), (1, "fp32", "muon"), (2, "bf16", "muon"), (1, "bf16", "adagrad")]
        results = {
            f"{stage} {precision} {optimizer} {what}": pair
            for stage, precision, optimizer in kinds
            for what, pair in measure(stage, precision, optimizer, world).items()
        }
        dist.barrier()
        if world.is_rank_zero:
            print(json.dumps(results), flush=True)


if __name__ == "__main__":
    die_with_parent()
    main()
