"""A rank of a small training run that checks the engine's state against brute force; run under torchrun.

    worker STAGE PRECISION save|load FOLDER [offload] [hierarchical] [to-owners] [muon|two-rates] [twice] [clean]

``twice`` takes as many steps more; ``clean`` sees no bad batch. Prints one JSON line on rank zero: losses, gradient
norms, the updates that the optimizer has counted and a digest of all state.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale.checkpoint import Checkpoint, Description, Position, Retention, Saver, content_digests
from dit_scale.conditioning import Labels
from dit_scale.config import EngineConfig, TrainSection
from dit_scale.data.loader import Batch
from dit_scale.diffusion import build_objective
from dit_scale.distributed.fragments import completed, laid_out
from dit_scale.distributed.runtime import World, die_with_parent, process_group, set_threads
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.optim import OPTIMIZERS, Group, adamw, block_matrices, everything
from dit_scale.training.loss import LossFunction
from dit_scale.training.state import TrainingState
from dit_scale.training.step import compute_gradient
from dit_scale.zero.batches import BatchPlan, plan_batches
from dit_scale.zero.engine import build_engine, set_learning_rate
from dit_scale.zero.optimizer_state import OptimizerState
from dit_scale.zero.update_guard import UpdateGuard
from tests.networks import fill

STEPS = 3
LATENTS = LatentSpec(channels=4, size=8)
DECAY = 0.9


def two_rates(train: TrainSection) -> Sequence[Group]:
    """Return AdamW at half the rate, with decay, for the matrices of blocks; at the whole rate for the rest."""
    algorithm = adamw.algorithm(train)
    return [Group(block_matrices, algorithm, weight_decay=0.1, rate_scale=0.5), Group(everything, algorithm)]


OPTIMIZERS["two-rates"] = two_rates


def batch_at(step: int, size: int, world: World) -> Batch:
    """Return this rank's part of a batch of made-up moments that depends on the position alone."""
    positions = torch.arange(step * size, (step + 1) * size)
    generator = torch.Generator().manual_seed(step)
    moments = torch.randn(size, *LATENTS.moments_shape, generator=generator)
    part = slice(world.rank * size // world.world_size, (world.rank + 1) * size // world.world_size)
    keys = [str(int(position)) for position in positions[part]]
    return Batch(positions[part], moments[part], positions[part] % 5, keys, {})


def small_model() -> DiT:
    """Return a model whose every weight counts."""
    torch.manual_seed(0)
    model = DiT(latent_size=8, patch_size=2, hidden_size=48, depth=3, num_heads=4, num_classes=5)
    fill(model, std=0.02)
    return model


def plain_steps(
    model: DiT, loss_of: Callable[[int], Tensor], num_steps: int, learning_rate: float
) -> dict[str, list[float]]:
    """Return losses and gradient norms of steps that PyTorch alone takes, under AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    losses, norms = [], []
    for step in range(num_steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]).item())
        optimizer.step()
    return {"losses": losses, "norms": norms}


def whole_master(state: TrainingState) -> dict[str, Tensor]:
    """Return the fp32 master weights of all ranks (collective)."""
    optimizer = state.optimizer
    master = optimizer.master
    tensors = [fragment.of(master) for fragment in optimizer.owned]
    return completed(laid_out(optimizer.owned, tensors, optimizer.shapes, master[0].device), optimizer.shapes)


def begin(
    model: DiT, config: EngineConfig, train: TrainSection, world: World, device: str = "cpu"
) -> tuple[Any, TrainingState]:
    """Return an engine and its state, which begin with the model's weights (collective)."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    engine = build_engine(model, config, train, plan_batches(train, world.world_size), world, device)
    state = TrainingState(OptimizerState(engine), train)
    state.start_from(weights)
    return engine, state


def check_owned_once(state: TrainingState) -> None:
    """Assert that over all ranks every element of every parameter is owned exactly once (collective)."""
    owned, shapes = state.optimizer.owned, state.optimizer.shapes
    ones = [torch.ones(fragment.numel) for fragment in owned]
    for name, count in completed(laid_out(owned, ones, shapes, "cpu"), shapes).items():
        assert torch.equal(count, torch.ones_like(count)), f"{name} is not owned exactly once"


def check_weights_follow_master(engine: Any, master: dict[str, Tensor]) -> None:
    """Assert that the model computes with the master weights, rounded to its precision (collective)."""
    import deepspeed

    for name, parameter in engine.module.named_parameters():
        if name in master:
            with deepspeed.zero.GatheredParameters([parameter]):
                assert torch.equal(parameter.detach(), master[name].to(parameter.dtype)), f"{name} is not its master"


def check_discarded_updates(
    engine: Any, gate: UpdateGuard, loss_function: LossFunction, plan: BatchPlan, state: TrainingState, world: World
) -> None:
    """Assert that a gradient that is too long or not finite changes nothing (collective)."""
    before, adam_step = content_digests(state.part()), state.optimizer.adam_step
    batch = batch_at(0, 12, world)
    compute_gradient(engine, loss_function, batch, plan)
    verdict = gate.step(limit=1e-9)
    assert not verdict.was_updated
    assert 1e-9 < verdict.norm < math.inf
    if world.is_rank_zero:  # on one rank, in the last micro step
        batch.moments[-1, 0, 0, 0] = math.nan
    losses = compute_gradient(engine, loss_function, batch, plan).total
    verdict = gate.step()
    assert not verdict.was_updated
    assert not math.isfinite(verdict.norm)
    assert torch.isnan(losses).nonzero().flatten().tolist() == ([len(losses) - 1] if world.is_rank_zero else [])
    assert state.optimizer.adam_step == adam_step
    assert content_digests(state.part()) == before, "a discarded update has changed weights or optimizer state"


def main(stage: int, precision: str, action: str, folder: Path, options: set[str]) -> None:
    world = World.from_environment()
    if "hierarchical" in options:  # as on two nodes
        world = replace(world, local_world_size=world.world_size // 2, local_rank=world.rank % (world.world_size // 2))
    set_threads(world, 1)
    with process_group(world, "cpu"):
        train = TrainSection(
            optimizer=next((name for name in OPTIMIZERS if name in options), "adamw"),  # type: ignore[arg-type]
            global_batch_size=12,
            micro_batch_size_per_gpu=2,
            max_grad_norm=1.0,
            ema_decay=DECAY,
        )
        plan = plan_batches(train, world.world_size)
        config = EngineConfig(
            zero_stage=stage,  # type: ignore[arg-type]
            precision=precision,  # type: ignore[arg-type]
            offload_optimizer="offload" in options,
            hierarchical_partitioning="hierarchical" in options,
            reduce_to_owners="to-owners" in options if stage in (1, 2) else None,
            checkpoint_every_blocks=2,
        )
        engine, state = begin(small_model(), config, train, world)
        first = 0
        if action == "load":
            state.restore(Checkpoint(folder / "step-00000003"))
            first = STEPS
        replica = whole_master(state)  # the average as everyone writes it, over whole parameters
        loss_function = LossFunction(build_objective("gaussian"), LATENTS, 0, 0.1, Labels(5))
        gate = UpdateGuard(engine, train.max_grad_norm)
        if "clean" not in options:
            check_discarded_updates(engine, gate, loss_function, plan, state, world)
        losses, norms = [], []
        for step in range(first, first + STEPS * (1 + ("twice" in options))):
            set_learning_rate(engine, 1e-3)
            loss = compute_gradient(engine, loss_function, batch_at(step, 12, world), plan).total.sum()
            verdict = gate.step()
            assert verdict.was_updated
            dist.all_reduce(loss)
            losses.append(loss.item() / 12)
            norms.append(verdict.norm)
            state.update_emas(verdict)
            for name, value in whole_master(state).items():
                replica[name].lerp_(value, 1.0 - DECAY)
        check_owned_once(state)
        check_weights_follow_master(engine, whole_master(state))
        if action == "save":
            for name, value in state.ema.completed(state.ema.laid_out("cpu")).items():
                assert torch.equal(value, replica[name]), f"the EMA of {name} differs from a full replica"
            saver = Saver(folder, world, Retention())
            saver.save(Description(Position(STEPS, 36), {}, {}), state.part())
            outcome = saver.wait()
            assert outcome is not None and outcome.trouble is None, outcome
        digest = hashlib.sha256(json.dumps(content_digests(state.part()), sort_keys=True).encode()).hexdigest()
        if world.is_rank_zero:
            found = {"losses": losses, "norms": norms, "adam_step": state.optimizer.adam_step, "digest": digest}
            print(json.dumps(found))


if __name__ == "__main__":
    die_with_parent()
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), set(sys.argv[5:]))
