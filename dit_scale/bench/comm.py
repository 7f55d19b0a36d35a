"""`dit-scale bench comm`: what the ranks of a step tell each other, counted, timed, and beside what `plan` says."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dit_scale.bench.loop import Loop
from dit_scale.bench.measure import Spread
from dit_scale.bench.report import begin_report, show, show_table, write_report
from dit_scale.bench.step import random_model
from dit_scale.config import EngineConfig
from dit_scale.distributed.runtime import World, device_of, process_group, set_threads
from dit_scale.distributed.traffic import Traffic
from dit_scale.latents import LatentSpec
from dit_scale.parameters import DTYPES
from dit_scale.planning.communication import collectives_of, ring_bytes
from dit_scale.planning.memory import TrainingSetup

_PACKAGES = ("dit_scale", "torch", "deepspeed")
_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
"""Bytes of the all-reduces that are timed."""


def bench_comm(
    model_name: str,
    image_size: int,
    batch_size: int,
    micro_batch_size: int,
    engine: EngineConfig,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Count a step's collectives on all ranks and time all-reduces of several sizes (collective)."""
    world = World.from_environment()
    device = device_of(world)
    set_threads(world, engine.threads_per_rank)
    report = begin_report("comm", _PACKAGES, json_file)
    latents = LatentSpec(4, image_size // 8)
    with process_group(world, device):
        model = random_model(model_name, latents)
        loop = Loop(model, latents, engine, batch_size, micro_batch_size, world, device)
        for _ in range(2):
            loop.step()  # the first two differ: DeepSpeed learns the order of parameters
        with Traffic() as traffic:
            loop.step()
        setup = TrainingSetup(
            micro_batch_size,
            world.world_size,
            engine.zero_stage,
            DTYPES[engine.precision].itemsize,
            loop.plan.gradient_accumulation_steps,
            engine.checkpoint_every_blocks,
            engine.activation_budget,
            engine.offload_optimizer,
            engine.bucket_for(loop.num_parameters, world.world_size),
            engine.reduces_to_owners(loop.num_parameters, world.world_size),
            on_gpu=device.startswith("cuda"),
        )
        planned: dict[str, int] = {}
        for collective in collectives_of(model, setup):
            planned[collective.kind] = planned.get(collective.kind, 0) + collective.num_bytes
        rates = {size: _all_reduce_seconds(size, device, rounds) for size in _SIZES}
    report |= {
        "model": model_name,
        "world_size": world.world_size,
        "engine": asdict(engine),
        "gradient_accumulation_steps": loop.plan.gradient_accumulation_steps,
        "counted": {kind: asdict(tally) for kind, tally in traffic.tallies.items()},
        "planned_bytes": planned,
        "sent_bytes": sum(
            ring_bytes(kind, tally.num_bytes, world.world_size) for kind, tally in traffic.tallies.items()
        ),
        "all_reduce_seconds": {str(size): asdict(spread) for size, spread in rates.items()},
    }
    if world.is_rank_zero:
        _show(report)
        write_report(report, json_file)


def _all_reduce_seconds(num_bytes: int, device: str, rounds: int) -> Spread:
    numbers = torch.zeros(num_bytes // 4, device=device)
    found = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        dist.all_reduce(numbers)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return Spread.of(found[1:])


def _show(report: dict[str, Any]) -> None:
    show(report)
    print(
        f"{report['model']}, ZeRO {report['engine']['zero_stage']}, {report['world_size']} ranks, "
        f"{report['gradient_accumulation_steps']} micro steps: {report['sent_bytes'] / 1e6:.3f} MB sent by a rank"
    )
    rows = [
        [kind, str(tally["calls"]), f"{tally['num_bytes']:,}", f"{report['planned_bytes'].get(kind, 0):,}"]
        for kind, tally in report["counted"].items()
    ]
    show_table("a step's collectives", ["", "calls", "bytes counted", "bytes planned"], rows)
    share = 2 * (report["world_size"] - 1) / report["world_size"]
    rows = [
        [f"{int(size) >> 10} KiB", f"{1e3 * spread['median']:.3g}", f"{share * int(size) / spread['median'] / 1e9:.3g}"]
        for size, spread in report["all_reduce_seconds"].items()
    ]
    show_table("all-reduce", ["", "ms", "GB/s sent"], rows)
