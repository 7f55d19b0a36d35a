"""Configuration -> DeepSpeed engine: the one place that writes DeepSpeed's own configuration."""

import logging
import os
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dit_scale import optim
from dit_scale.config import EngineConfig, TrainSection, refuse_unused
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from dit_scale.optim import WholeMatrices, build_optimizer, groups_of, needs_whole
from dit_scale.parameters import DTYPES, num_trained, trained
from dit_scale.zero.batches import BatchPlan
from dit_scale.zero.optimizer_state import fragments_of_stages_1_and_2


def build_engine(
    model: Any, engine: EngineConfig, train: TrainSection, batches: BatchPlan, world: World, device: str
) -> Any:
    """Wrap a model for training: activation checkpointing, compilation, optimizer, DeepSpeed's ZeRO.

    Collective. ``world`` must have joined its process group. Raises InputError for what DeepSpeed refuses or
    gets wrong.
    """
    check_engine(engine, train)
    deepspeed = _import_deepspeed()
    world.export()  # DeepSpeed reads torchrun's variables; under srun nobody else sets them
    # DeepSpeed takes the device from LOCAL_RANK; with one visible GPU a process that is number 0.
    if device.startswith("cuda"):
        os.environ["LOCAL_RANK"] = device.partition(":")[2]
    deepspeed.init_distributed(dist_backend="nccl" if device.startswith("cuda") else "gloo", verbose=False)
    model.to(device=device, dtype=DTYPES[engine.precision])
    wrap_blocks(model, engine)
    updates_on = torch.device("cpu" if engine.offload_optimizer else device)
    optimizer: Any = build_optimizer(groups_of(train), trained(model), train.learning_rate, updates_on)
    if engine.zero_stage == 3:  # a block's weights come together: no hook of DeepSpeed's breaks what is compiled
        deepspeed.utils.set_z3_leaf_modules(model, list({type(block) for block in model.blocks}))
    num_parameters = num_trained(model)
    overlaps = _overlaps(engine, world, device)
    config = deepspeed_config(engine, batches, world, num_parameters, overlaps)
    wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if engine.zero_stage in (1, 2):  # parameters are views of the flat weights already; it makes them so each step
        wrapped.optimizer._update_model_bit16_weights = lambda _: None
        if needs_whole(train):
            shapes = {name: parameter.shape for name, parameter in trained(model).items()}
            optimizer.whole = WholeMatrices(list(fragments_of_stages_1_and_2(trained(model))), shapes)
    if not _reduces(engine, world):
        wrapped.optimizer.buffered_reduce_fallback = lambda *_, **__: None
        wrapped.optimizer.flatten_dense_tensors_aligned = _flatten_to_fp32
    return wrapped


def wrap_blocks(model: nn.Module, engine: EngineConfig) -> None:
    """Turn kernels off, multiply in 8 bits, compile and recompute blocks, as asked; no parameter's name changes."""
    dit: Any = model
    every = engine.checkpoint_every_blocks
    if engine.kernels == "off":
        dit.turn_off_kernels()
    if engine.fp8:
        dit.use_fp8()
    if engine.compile:
        dit.compile_blocks(engine.activation_budget)
    for index, block in enumerate(dit.blocks):
        if every and index % every == 0:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def deepspeed_config(
    engine: EngineConfig, batches: BatchPlan, world: World, num_parameters: int, overlaps: bool
) -> dict[str, Any]:
    """Return DeepSpeed's configuration; learning rate, clipping, data and checkpoints stay ours."""
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    bucket_elements = engine.bucket_for(num_parameters, world.world_size)
    if engine.zero_stage > 0:
        zero |= {"reduce_bucket_size": bucket_elements, "overlap_comm": overlaps}
    if engine.zero_stage in (1, 2):
        zero |= {"allgather_bucket_size": bucket_elements}
        zero |= {"contiguous_gradients": _reduces(engine, world)}
        to_owners = engine.reduces_to_owners(num_parameters, world.world_size)
        zero |= {"use_multi_rank_bucket_allreduce": not to_owners}
    if engine.zero_stage == 3:
        zero |= {"stage3_prefetch_bucket_size": bucket_elements}
    if engine.hierarchical_partitioning:
        zero |= {"zero_hpz_partition_size": world.local_world_size}
    if engine.offload_optimizer:
        zero |= {"offload_optimizer": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    return {
        "train_micro_batch_size_per_gpu": 1,  # only its product with the next is used; micro batches are cut by us
        "gradient_accumulation_steps": batches.gradient_accumulation_steps,
        "gradient_clipping": 0.0,  # its own default is 1; the update guard has the optimizer do it
        "bf16": {"enabled": engine.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},  # they wait for the GPU twice a step
        "steps_per_print": 1 << 62,
    }


def _flatten_to_fp32(gradients: list[Tensor], num_elements: int) -> Tensor:
    """Return gradients one after the other, in fp32, filled up with zeros; DeepSpeed copies them, and then converts."""
    flat = torch.empty(num_elements, dtype=torch.float32, device=gradients[0].device)
    sizes = [gradient.numel() for gradient in gradients]
    torch._foreach_copy_(list(flat[: sum(sizes)].split(sizes)), [gradient.flatten() for gradient in gradients])
    flat[sum(sizes) :].zero_()
    return flat


def _reduces(engine: EngineConfig, world: World) -> bool:
    """Whether gradients go through DeepSpeed's buckets: on one rank they need not be copied there and back."""
    return engine.zero_stage not in (1, 2) or engine.offload_optimizer or world.world_size > 1


def _overlaps(engine: EngineConfig, world: World, device: str) -> bool:
    """Whether gradients are reduced, or gathered weights fetched, beside what a GPU computes.

    At stages 1 and 2 the host then waits for the GPU once a step, which idles meanwhile for 10 ms and more; inside a
    node gradients are summed sooner than that.
    """
    if not device.startswith("cuda") or not _reduces(engine, world):
        return False
    if engine.overlap_reduction is not None or engine.zero_stage not in (1, 2):
        return engine.overlap_reduction is not False
    return world.world_size > world.local_world_size


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Set the rate of the next update; each group takes its own multiple of it."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_scale"]


def check_engine(engine: EngineConfig, train: TrainSection) -> None:
    """Refuse what DeepSpeed refuses or gets wrong, and what has no effect, with an InputError."""
    check_stage(engine, train)
    refuse_unused(engine, "engine")


def check_stage(engine: EngineConfig, train: TrainSection) -> None:
    """Refuse, with an InputError, a ZeRO stage that is wrong with the precision or the optimizer."""
    if engine.zero_stage == 0 and engine.precision == "bf16":
        raise InputError(
            "engine.zero_stage=0 with engine.precision=bf16 makes DeepSpeed take a wrong Adam step; "
            "use engine.zero_stage=1 (the same memory on one rank) or engine.precision=fp32"
        )
    optim.check_stage(train, engine.zero_stage, engine.offload_optimizer)


def _import_deepspeed() -> Any:
    """Import DeepSpeed without the compilation of its shared-memory op, which takes minutes on a CPU."""
    import deepspeed
    from deepspeed import ops
    from deepspeed.utils import logger

    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel("WARNING")
    # Of whatever it has no name for: here each is held to the update guard, or refused, and tried at the start.
    logger.addFilter(_is_no_untested_optimizer)
    return deepspeed


def _is_no_untested_optimizer(record: logging.LogRecord) -> bool:
    return "untested optimizer" not in record.getMessage()
