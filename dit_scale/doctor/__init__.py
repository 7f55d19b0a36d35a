"""`dit-scale doctor`: everything that can be known to go wrong, before GPU hours are spent on it."""

from pathlib import Path

import torch.distributed as dist

from dit_scale.config import Config
from dit_scale.data.loader import LatentDataset
from dit_scale.distributed.runtime import World, device_of, process_group, set_threads
from dit_scale.distributed.sharing import gather_everywhere
from dit_scale.doctor import hardware, run, software
from dit_scale.doctor.finding import Finding, Status, guarded, show, worst_of_ranks, write
from dit_scale.errors import Failure, InputError
from dit_scale.models import DiT
from dit_scale.planning.choices import outline, plural
from dit_scale.training.data import open_dataset

__all__ = ["doctor"]

_JOIN_SECONDS = 120.0


def doctor(config: Config, json_file: Path | None = None) -> bool:
    """Check everything a run needs, print a table on rank zero, and return whether nothing fails.

    Collective: run it on as many ranks as the run will have. Changes nothing in the run folder.
    """
    world = World.from_environment()
    device = device_of(world)
    set_threads(world, config.engine.threads_per_rank)
    try:
        with process_group(world, device, timeout_seconds=_JOIN_SECONDS):
            findings = _on_all_ranks(config, world, device)
            if world.is_rank_zero:
                _tell(findings, config, world, json_file)
            dist.barrier()  # a rank that leaves with a failure makes the launcher end the one that still tells
    except (RuntimeError, OSError) as error:  # what torch.distributed raises: this rank could not join the others
        findings = [_apart(error, world)]
        _tell(findings, config, world, json_file if world.is_rank_zero else None)
    return max(finding.status for finding in findings) < Status.FAIL


def _on_all_ranks(config: Config, world: World, device: str) -> list[Finding]:
    """Return each check's worst finding over all ranks (collective)."""
    return worst_of_ranks(gather_everywhere(_examine(config, world, device), world))


def _tell(findings: list[Finding], config: Config, world: World, json_file: Path | None) -> None:
    show(findings, f"dit-scale doctor: {config.run_dir}, {plural(world.world_size, 'rank')}")
    if json_file is not None:
        write(json_file, findings, world.world_size)


def _apart(error: Exception, world: World) -> Finding:
    said = str(error).strip().splitlines() or [type(error).__name__]
    way_out = "see that every rank starts, that MASTER_ADDR:MASTER_PORT can be reached, and NCCL_DEBUG=INFO"
    return Finding("process group", Status.FAIL, f"rank {world.rank} of {world.world_size}: {said[0]}", way_out)


def _examine(config: Config, world: World, device: str) -> list[Finding]:
    """Return what this rank finds; the collective checks come in the same order on every rank."""
    first = [
        guarded("versions", software.versions),
        guarded("device", hardware.device, device, world, config.engine.precision),
        guarded("process group", hardware.all_reduce, world, device),
    ]
    rates = hardware.measure_disk(Path(config.run_dir), world)
    dataset, model = _opened(config), _outlined(config)
    try:
        return [
            *first,
            *_of_model(model, config, world, device),
            *([guarded("encoders", run.encoders, config)] if config.alignment.encoders else []),
            guarded("batch", run.batch, config, world),
            guarded("shards", run.shards, dataset, world),
            guarded("disk", hardware.disk, rates),
            guarded("run folder", run.resumability, config, dataset, world),
            *_of_checkpoints(model, config, rates),
            guarded("wandb", software.wandb, config.wandb, world),
        ]
    finally:
        if isinstance(dataset, LatentDataset):
            dataset.close()


def _of_model(model: DiT | InputError, config: Config, world: World, device: str) -> list[Finding]:
    first = guarded("model", run.model_and_engine, model, config)
    if isinstance(model, InputError):
        return [first, *(_unknown(name) for name in ("attention", "memory", "host memory"))]
    return [
        first,
        guarded("attention", hardware.attention_kernel, model, config, device),
        guarded("memory", run.memory, model, config, world, device),
        guarded("host memory", run.host, model, config, world, device),
    ]


def _of_checkpoints(model: DiT | InputError, config: Config, rates: hardware.DiskRates) -> list[Finding]:
    if isinstance(model, InputError):
        return [_unknown(name) for name in ("free space", "save time")]
    return [
        guarded("free space", run.free_space, model, config),
        guarded("save time", run.save_time, model, config, rates),
    ]


def _unknown(name: str) -> Finding:
    return Finding(name, Status.WARN, "unknown, since the model is", "fix that first")


def _opened(config: Config) -> LatentDataset | InputError:
    """Return the data, or why it cannot be trained on."""
    try:
        return open_dataset(config.data, config.model.condition, with_crops=bool(config.alignment.encoders))
    except (InputError, Failure, OSError) as error:
        return InputError(str(error))


def _outlined(config: Config) -> DiT | InputError:
    """Return the model without its weights, or why there is none."""
    try:
        return outline(config)
    except (InputError, Failure, OSError) as error:
        return InputError(str(error))
