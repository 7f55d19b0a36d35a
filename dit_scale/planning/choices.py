"""The memory that a configuration takes, what smaller choices would take, and running out of it in one sentence."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dit_scale.config import Config, EngineConfig, TrainSection
from dit_scale.data.manifest import manifest_in
from dit_scale.data.mixture import mix
from dit_scale.data.opening import open_storage
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT
from dit_scale.optim import groups_of
from dit_scale.parameters import DTYPES, num_trained
from dit_scale.planning.frozen import frozen_of
from dit_scale.planning.memory import MemoryEstimate, TrainingSetup, estimate_memory
from dit_scale.recipe import model_of
from dit_scale.zero.batches import BatchPlan, plan_batches
from dit_scale.zero.engine import check_stage

_CPU_ALLOCATOR = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
_CUDA_ALLOCATOR = re.compile(r"Tried to allocate ([\d.]+) ([KMG]iB)")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True)
class Choice:
    """A setting that takes less memory, and how much it would take."""

    setting: str
    estimate: MemoryEstimate


def outline(config: Config) -> DiT:
    """Return the configured model without its weights, for the latents that the shards' manifests tell of.

    Raises InputError where a manifest cannot be read or the model does not fit the latents.
    """
    data = config.data
    places = list(data.path) if isinstance(data.path, Mapping) else [str(data.path)]
    manifests = {}
    for place in places:
        storage = open_storage(
            place, cache=Path(data.cache) if data.cache else None, patience_seconds=data.patience_seconds
        )
        try:
            manifests[place] = manifest_in(storage)
        finally:
            storage.close()
    mixture = mix(manifests, data.class_names)
    return model_on_meta(config, manifests[places[0]].latents, len(mixture.class_names))


def model_on_meta(config: Config, latents: LatentSpec, num_classes: int) -> DiT:
    """Return the configured model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return model_of(config, latents, num_classes, in_training=True)


def setup_of(config: Config, model: DiT, world_size: int, on_gpu: bool, gpus_per_node: int = 8) -> TrainingSetup:
    """Return what a configuration's memory depends on; raises InputError where the ranks do not divide the batch."""
    plan, engine = plan_batches(config.train, world_size, config.diffusion.images_together), config.engine
    num_parameters = num_trained(model)
    return TrainingSetup(
        micro_batch_size=_largest_micro_batch(plan),
        world_size=world_size,
        zero_stage=engine.zero_stage,
        bytes_per_number=DTYPES[engine.precision].itemsize,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        checkpoint_every_blocks=engine.checkpoint_every_blocks,
        all_tokens=0 < config.routing.until_step < config.train.steps,  # the phase that takes most
        activation_budget=engine.activation_budget,
        offload_optimizer=engine.offload_optimizer,
        bucket_elements=engine.bucket_for(num_parameters, world_size),
        reduce_to_owners=engine.reduces_to_owners(num_parameters, world_size),
        node_size=min(gpus_per_node, world_size) if engine.hierarchical_partitioning else 0,
        groups=groups_of(config.train),
        has_kernels=engine.kernels != "off",
        on_gpu=on_gpu,
        frozen=frozen_of(config.alignment.encoders, model.grid_side),
    )


def is_allowed(engine: EngineConfig, train: TrainSection) -> bool:
    """Whether the ZeRO stage goes with the precision and the optimizer."""
    try:
        check_stage(engine, train)
    except InputError:
        return False
    return True


def smaller_choices(config: Config, model: DiT, setup: TrainingSetup, limit_bytes: float = math.inf) -> list[Choice]:
    """Return the next smaller settings, the cheapest in speed first; only those that take less by the estimate.

    The micro batch is halved, and the ranks doubled, until the estimate is within ``limit_bytes``.
    """
    engine, size, together = config.engine, setup.micro_batch_size, config.diffusion.images_together
    tried: list[tuple[str, TrainingSetup]] = []
    while size > together:
        size = max(size // 2, together)
        train = replace(config.train, micro_batch_size_per_gpu=size)
        halved = setup_of(replace(config, train=train), model, setup.world_size, setup.on_gpu)
        if estimate_memory(model, halved).peak <= limit_bytes or size == together:
            tried.append((f"train.micro_batch_size_per_gpu={size}", halved))
            break
    stage: Any = setup.zero_stage + 1
    if stage <= 3 and setup.world_size > 1 and is_allowed(replace(engine, zero_stage=stage), config.train):
        tried.append((f"engine.zero_stage={stage}", replace(setup, zero_stage=stage)))
    if engine.checkpoint_every_blocks != 1:
        tried.append(("engine.checkpoint_every_blocks=1", replace(setup, checkpoint_every_blocks=1)))
    ranks, parts = setup.world_size, config.train.global_batch_size // together
    while setup.zero_stage > 0 and parts % (2 * ranks) == 0:
        ranks *= 2
        shared = setup_of(config, model, ranks, setup.on_gpu)
        if estimate_memory(model, shared).peak <= limit_bytes or parts % (2 * ranks):
            tried.append((f"{ranks} ranks", shared))
            break
    can_offload = setup.zero_stage > 0 and is_allowed(replace(engine, offload_optimizer=True), config.train)
    if setup.on_gpu and not setup.offload_optimizer and can_offload:
        tried.append(("engine.offload_optimizer=true", replace(setup, offload_optimizer=True)))
    now = estimate_memory(model, setup).peak
    choices = [Choice(setting, estimate_memory(model, other)) for setting, other in tried]
    return [choice for choice in choices if choice.estimate.peak < now]


def in_words(choices: list[Choice], limit_bytes: float = math.inf) -> str:
    """Return what each choice would need, as a fix."""
    if not choices:
        return "a smaller model, or a device with more memory"
    words = ", or ".join(f"{choice.setting} ({gigabytes(choice.estimate.peak)})" for choice in choices)
    is_enough = min(choice.estimate.peak for choice in choices) <= limit_bytes
    return words if is_enough else f"several of these together, none is enough alone: {words}"


def gigabytes(num_bytes: float) -> str:
    """Return bytes as GB, or as MB below a tenth of one."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def plural(count: int, thing: str) -> str:
    """Return ``1 rank`` or ``2 ranks``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _largest_micro_batch(plan: BatchPlan) -> int:
    return max(part.stop - part.start for part in plan.micro_batches)
