"""`dit-scale bench feed`: steps fed from shards, as training reads them, beside steps on one batch in memory."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from dit_scale.bench.loop import Loop
from dit_scale.bench.measure import Spread, in_rounds
from dit_scale.bench.report import begin_report, show, show_table, write_report
from dit_scale.bench.shards import write_synthetic
from dit_scale.bench.step import random_model
from dit_scale.config import Config, DataConfig, EngineConfig, TrainSection
from dit_scale.distributed.runtime import World, device_of, keep_freed_memory, process_group, set_threads
from dit_scale.training.data import open_dataset, open_loader

_PACKAGES = ("dit_scale", "torch", "deepspeed", "numpy")
_RECORDS = 4096
FED, SYNTHETIC = "from shards, verified", "one batch in memory"


def bench_feed(
    model_name: str, batch_size: int, engine: EngineConfig, steps: int, rounds: int, json_file: Path | None
) -> None:
    """Take ``steps`` steps of each kind in turn, ``rounds`` times; print and write what they took."""
    report = begin_report("feed", _PACKAGES, json_file)
    world, device = World(), device_of(World())
    report["threads"] = set_threads(world)
    if device == "cpu":
        keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="bench-feed-") as folder, process_group(world, device):
        shards = Path(folder) / "shards"
        latents = write_synthetic(shards, _RECORDS, mirrors=2).latents
        train = TrainSection(global_batch_size=batch_size, micro_batch_size_per_gpu=batch_size)
        config = Config(run_dir=folder, data=DataConfig(path=str(shards)), train=train)
        dataset = open_dataset(config.data)
        loop = Loop(random_model(model_name, latents), latents, engine, batch_size, batch_size, world, device)
        in_memory = loop.batch
        with open_loader(dataset, config, world, 0, device.startswith("cuda")) as batches:

            def fed() -> None:
                for _ in range(steps):
                    loop.batch = next(batches)
                    loop.step()

            def synthetic() -> None:
                loop.batch = in_memory
                for _ in range(steps):
                    loop.step()

            actions: dict[str, Callable[[], object]] = {FED: fed, SYNTHETIC: synthetic}
            for action in actions.values():
                action()
            costs = in_rounds(actions, rounds)
    seconds = {name: [cost.wall_seconds / steps for cost in found] for name, found in costs.items()}
    cpu = {name: [cost.cpu_seconds / steps for cost in found] for name, found in costs.items()}
    ratios = [a / b for a, b in zip(seconds[FED], seconds[SYNTHETIC], strict=True)]
    cpu_ratios = [a / b for a, b in zip(cpu[FED], cpu[SYNTHETIC], strict=True)]
    report |= {
        "model": model_name,
        "batch_size": batch_size,
        "engine": asdict(engine),
        "steps_a_round": steps,
        "seconds": {name: asdict(Spread.of(found)) for name, found in seconds.items()},
        "cpu_seconds": {name: asdict(Spread.of(found)) for name, found in cpu.items()},
        "ratio": asdict(Spread.of(ratios)),
        "cpu_ratio": asdict(Spread.of(cpu_ratios)),
    }
    show(report)
    print(f"{model_name} at 256 px, batch {batch_size}, {engine.precision}; {steps} steps a round")
    rows = [[name, str(Spread.of(seconds[name])), str(Spread.of(cpu[name]))] for name in actions]
    show_table("median (least-most)", ["a step", "seconds", "CPU seconds of all threads"], rows)
    print(f"fed against synthetic: {Spread.of(ratios)} of the time, {Spread.of(cpu_ratios)} of the CPU seconds")
    write_report(report, json_file)
