"""A training run from its configuration to its end: the ranks, the watchdog and the history around the loop."""

from contextlib import ExitStack
from pathlib import Path

from dit_scale.config import Config
from dit_scale.distributed.runtime import World, device_of, keep_freed_memory, process_group, set_threads
from dit_scale.files import full_disk_explained
from dit_scale.supervision.history import Recorder
from dit_scale.supervision.out_of_memory import out_of_memory_explained
from dit_scale.supervision.phases import Phases
from dit_scale.supervision.preemption import StopRequest
from dit_scale.supervision.watchdog import Watchdog
from dit_scale.training import run_folder
from dit_scale.training.build import build
from dit_scale.training.loop import Loop
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import check_engine


def train(config: Config, stop: StopRequest) -> None:
    """Train until ``config.train.steps`` or until asked to stop; either way everything is saved."""
    world = World.from_environment()
    device = device_of(world)
    set_threads(world, config.engine.threads_per_rank)
    if device == "cpu":
        keep_freed_memory()
    # Refuse early what cannot be split, and what no engine does.
    plan_batches(config.train, world.world_size, config.diffusion.images_together)
    check_engine(config.engine, config.train)
    with ExitStack() as stack:
        recorder = Recorder(Path(config.run_dir), world, config.engine.zero_stage)
        stack.enter_context(full_disk_explained(config.run_dir, name="run folder"))
        if world.is_rank_zero:
            stack.enter_context(run_folder.only_writer(Path(config.run_dir)))
            stack.enter_context(recorder)
        last_resort_seconds = 1800.0 + 2.0 * config.watchdog.long_seconds  # the watchdog, which says more, is first
        store = stack.enter_context(process_group(world, device, last_resort_seconds))
        stack.push(recorder)  # any rank's failure is written down before the ranks part
        phases = Phases()
        stack.enter_context(Watchdog(config.watchdog, phases, world, store, Path(config.run_dir)))
        stack.enter_context(out_of_memory_explained(config, world, device))
        loop = Loop(stack.enter_context(build(config, world, device, phases)), stop)
        recorder.finish(loop.run(), loop.position.step)
