"""The run itself: shards, batch, memory, room and time for checkpoints, and whether it can go on."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

import dit_scale
from dit_scale.checkpoint import Checkpoint
from dit_scale.checkpoint.layout import newest_first
from dit_scale.config import Config
from dit_scale.data.folder import ShardFolder
from dit_scale.data.loader import LatentDataset
from dit_scale.data.storage import LocalStorage
from dit_scale.distributed.devices import host_memory, memory_of
from dit_scale.distributed.runtime import World
from dit_scale.doctor.finding import Finding, Status
from dit_scale.doctor.hardware import DiskRates, existing
from dit_scale.errors import InputError, few
from dit_scale.files import holder_of
from dit_scale.models import DiT
from dit_scale.optim import groups_of
from dit_scale.parameters import num_trained
from dit_scale.planning.choices import gigabytes, in_words, plural, setup_of, smaller_choices
from dit_scale.planning.memory import checkpoint_bytes, estimate_memory
from dit_scale.recipe import objective_of
from dit_scale.training import run_folder
from dit_scale.training.alignment import load_encoders
from dit_scale.training.data import autoencoder_folder, describe
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import check_engine
from preprocessing.verify import find_damage

_FIRST_RECORDS = 4
_MARGIN_SECONDS = 60.0
"""What a stop may take beside the save: the step under way, and leaving."""


# ---------------------------------------------------------------- data


def shards(dataset: LatentDataset | InputError, world: World) -> Finding:
    """Check shards quickly: every rank its part of those on a file system, the first records of others."""
    if isinstance(dataset, InputError):
        raise dataset
    autoencoder_folder(dataset)  # raises where it is not beside the latents
    damaged, records, count = [], 0, 0
    for folder in dataset.folders:
        found = _local_damage(folder, world) if isinstance(folder.storage, LocalStorage) else _first_records(folder)
        damaged += [f"{folder.storage.location}/{how}" for how in found]
        records, count = records + len(folder), count + len(folder.manifest.shards)
    if damaged:
        figure = f"{plural(len(damaged), 'damaged shard')} of {count}: {few(damaged)}"
        way_out = "dit-scale verify SHARDS --repair encodes them again; data.on_damage=set_aside leaves records out"
        return Finding("shards", Status.FAIL, figure, way_out)
    figure = f"{plural(count, 'shard')}, {records} records; sizes, sidecars and a few records a shard are right"
    return Finding("shards", Status.PASS, figure)


def _local_damage(folder: ShardFolder, world: World) -> list[str]:
    mine = replace(folder.manifest, shards=folder.manifest.shards[world.rank :: world.world_size])
    return [f"{damage.file}: {damage.how}" for damage in find_damage(Path(folder.storage.location), mine, quick=True)]


def _first_records(folder: ShardFolder) -> list[str]:
    first = np.arange(min(_FIRST_RECORDS, len(folder)))
    buffers = np.empty((len(first), folder.row_bytes()), np.uint8)
    return list(folder.read(first, np.zeros(len(first), np.int64), buffers, verify=True).values())


def batch(config: Config, world: World) -> Finding:
    """Say how the global batch is split over ranks and micro steps."""
    plan = plan_batches(config.train, world.world_size, config.diffusion.images_together)
    sizes = sorted({part.stop - part.start for part in plan.micro_batches})
    figure = (
        f"{plan.global_batch_size} images = {plural(world.world_size, 'rank')} x {plan.batch_size_per_rank}, in "
        f"{plural(plan.gradient_accumulation_steps, 'micro step')} of {' or '.join(map(str, sizes))}"
    )
    return Finding("batch", Status.PASS, figure, "", {"micro_batch_sizes": sizes})


# ---------------------------------------------------------------- model and memory


def model_and_engine(model: DiT | InputError, config: Config) -> Finding:
    """Say which model is trained, and that it goes with the data, the objective and the engine."""
    if isinstance(model, InputError):
        raise model
    check_engine(config.engine, config.train)
    objective_of(config.diffusion, model)
    trainable = num_trained(model)
    figure = (
        f"{config.model.name}, {trainable / 1e6:.1f}M parameters, {model.grid_side**2} tokens, {model.num_classes} "
        f"classes; {config.engine.precision}, ZeRO {config.engine.zero_stage}"
    )
    return Finding("model", Status.PASS, figure, "", {"parameters": trainable})


def encoders(config: Config) -> Finding:
    """Load the frozen encoders of alignment, as training does."""
    with_digests, _ = load_encoders(config)
    names = ", ".join(config.alignment.encoders)
    return Finding("encoders", Status.PASS, names, "", {"digests": list(with_digests.alignment.encoder_digests)})


def memory(model: DiT, config: Config, world: World, device: str) -> Finding:
    """Compare the estimated peak of a step with what this rank's device has."""
    on_gpu = device.startswith("cuda")
    setup = setup_of(config, model, world.world_size, on_gpu)
    estimate = estimate_memory(model, setup)
    recomputed = estimate_memory(model, replace(setup, checkpoint_every_blocks=1))
    available = memory_of(device).free_bytes / (1 if on_gpu else world.local_world_size)
    needed = estimate.peak
    if not on_gpu:  # everything lies in the same memory
        needed = max(estimate.peak + estimate.host_optimizer, estimate.states + estimate.host_setup)
    parts = [
        f"{name.replace('_', ' ')} {gigabytes(size)}"
        for name, size in asdict(estimate).items()
        if size and not name.startswith("host")
    ]
    figure = (
        f"{gigabytes(needed)} of {gigabytes(available)} a rank: {', '.join(parts)}; activations with every block "
        f"checkpointed {gigabytes(recomputed.activations)}"
    )
    details = {"needed_bytes": needed, "available_bytes": available, "parts": asdict(estimate)}
    limit = 0.9 * available
    way_out = f"give {in_words(smaller_choices(config, model, setup, limit), limit)}"
    if needed > available:
        return Finding("memory", Status.FAIL, figure, way_out, details)
    if needed > 0.9 * available:
        return Finding("memory", Status.WARN, figure, f"little is left for fragments and libraries: {way_out}", details)
    return Finding("memory", Status.PASS, figure, "", details)


def host(model: DiT, config: Config, world: World, device: str) -> Finding:
    """Compare what the ranks of a machine take of its memory beside their GPUs with what it has."""
    if not device.startswith("cuda"):
        return Finding("host memory", Status.PASS, "the model lies there: see memory")
    estimate = estimate_memory(model, setup_of(config, model, world.world_size, on_gpu=True))
    save = _bytes_of(model, config) // world.world_size
    needed, available = world.local_world_size * max(estimate.host_peak, save), host_memory().free_bytes
    figure = f"{gigabytes(needed)} of {gigabytes(available)} for {plural(world.local_world_size, 'rank')} of a node"
    if needed > available:
        way_out = "ask for more memory a node (sbatch --mem), or fewer ranks on each"
        return Finding("host memory", Status.FAIL, figure, way_out)
    return Finding("host memory", Status.PASS, figure)


# ---------------------------------------------------------------- checkpoints


def free_space(model: DiT, config: Config) -> Finding:
    """Compare free space with what the checkpoints that stay, and one being written, take."""
    run_dir = Path(config.run_dir)
    each, kept = (
        _bytes_of(model, config),
        len(newest_first(run_dir / "checkpoints")),
    )
    needed = each * max(1, config.checkpoint.keep + 1 - kept)  # the oldest goes once the new one is complete
    free = shutil.disk_usage(existing(run_dir)).free
    figure = (
        f"{gigabytes(free)} free, {gigabytes(needed)} needed: checkpoint.keep={config.checkpoint.keep} and one being "
        f"written, {gigabytes(each)} each, {kept} there"
    )
    if free < needed:
        way_out = "make room, give a smaller checkpoint.keep, or a run_dir on another file system"
        return Finding("free space", Status.FAIL, figure, way_out, {"free_bytes": free, "needed_bytes": needed})
    return Finding("free space", Status.PASS, figure, "", {"free_bytes": free, "needed_bytes": needed})


def save_time(model: DiT, config: Config, rates: DiskRates) -> Finding:
    """Compare the time of a save at the measured rate with the notice that slurm/train.sbatch gives."""
    if rates.trouble is not None:
        return Finding("save time", Status.WARN, "unknown: the disk could not be measured", "see disk")
    num_bytes = _bytes_of(model, config)
    seconds, lead, size = num_bytes / rates.write_bytes_per_second, signal_lead_seconds(), gigabytes(num_bytes)
    figure = f"{seconds:.1f} s to save {size}; slurm/train.sbatch asks to stop {lead:g} s before the time limit"
    details = {"save_seconds": seconds, "lead_seconds": lead}
    if lead <= seconds + _MARGIN_SECONDS:
        needed = int(seconds + _MARGIN_SECONDS) + 1
        way_out = f"sbatch --signal=B:USR1@{needed} (the save and {_MARGIN_SECONDS:g} s), or a faster run_dir"
        return Finding("save time", Status.FAIL, figure, way_out, details)
    return Finding("save time", Status.PASS, figure, "", details)


def signal_lead_seconds() -> float:
    """Return how long before the time limit slurm/train.sbatch has the run asked to stop."""
    package = Path(dit_scale.__file__).parent
    for script in (package / "slurm" / "train.sbatch", package.parent / "slurm" / "train.sbatch"):
        if script.is_file() and (match := re.search(r"--signal=B:USR1@(\d+)", script.read_text())):
            return float(match[1])
    raise InputError("slurm/train.sbatch is not there, or asks for no signal; install dit_scale again")


def resumability(config: Config, dataset: LatentDataset | InputError, world: World) -> Finding:
    """Say whether the run is new or goes on, and from which checkpoint; every rank reads its part of it."""
    run_dir = Path(config.run_dir)
    if not os.access(existing(run_dir), os.W_OK):
        return Finding("run folder", Status.FAIL, f"'{run_dir}' cannot be written to", "give another run_dir")
    if world.is_rank_zero and (holder := holder_of(run_dir / run_folder.LOCK)):
        figure = f"'{run_dir}' is being written by {holder}"
        return Finding("run folder", Status.FAIL, figure, "stop that one or choose another run_dir")
    found = newest_first(run_dir / "checkpoints")
    damaged: list[str] = []
    for folder in found:
        if (reason := _damage(folder, world)) is None:
            return _goes_on(Checkpoint(folder), damaged, config, dataset)
        damaged.append(f"{folder.name} is damaged ({reason})")
    if damaged:
        way_out = "put a checkpoint back from a copy, or choose another run_dir"
        return Finding("run folder", Status.FAIL, ", ".join(damaged), way_out)
    return Finding("run folder", Status.PASS, f"'{run_dir}' is new: training begins at step 0")


def _goes_on(
    checkpoint: Checkpoint, damaged: Sequence[str], config: Config, dataset: LatentDataset | InputError
) -> Finding:
    where = f"goes on from {checkpoint.folder.name} of {config.train.steps} steps"
    if isinstance(dataset, InputError):
        return Finding("run folder", Status.WARN, f"{where}, if the data is that of before", "see shards")
    run_folder.check_resume(checkpoint, load_encoders(config)[0], describe(dataset))
    if damaged:
        return Finding("run folder", Status.WARN, f"{', '.join(damaged)}; {where}", "training sets it aside by itself")
    return Finding("run folder", Status.PASS, where, "", {"step": checkpoint.description.position.step})


def _damage(folder: Path, world: World) -> str | None:
    try:
        return Checkpoint(folder).damage(world.rank, world.world_size)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        return str(error)


def _bytes_of(model: DiT, config: Config) -> int:
    """Return the bytes of one checkpoint, with every average that is kept."""
    extra_emas = len(config.train.extra_ema_decays) + len(config.train.power_ema_widths)
    return checkpoint_bytes(model, groups_of(config.train), extra_emas)
