"""Several processes on this machine that do one thing, and end together."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from dit_scale.distributed.runtime import World, die_with_parent
from dit_scale.errors import Failure


def run_workers(count: int, work: Callable[[Any, World], None], argument: Any) -> None:
    """Run ``work(argument, world)`` in ``count`` new processes; the first that fails ends all, with its error."""
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    worlds = [World(rank, count, local_rank=rank, local_world_size=count) for rank in range(count)]
    running = [context.Process(target=_run, args=(work, argument, world, errors)) for world in worlds]
    try:
        for process in running:
            process.start()
        while running:
            wait([process.sentinel for process in running])
            for process in [process for process in running if not process.is_alive()]:
                if process.exitcode != 0:
                    raise (
                        errors.get()
                        if not errors.empty()
                        else Failure(
                            f"an encoder process ended with status {process.exitcode} and no error of its own (-9: it "
                            f"was killed, perhaps for want of memory); run this again, which makes what is missing"
                        )
                    )
                running.remove(process)
    finally:
        for process in running:
            process.kill()  # what it was writing has a temporary name
            process.join()


def _run(work: Callable[[Any, World], None], argument: Any, world: World, errors: Any) -> None:
    die_with_parent()
    try:
        work(argument, world)
    except Exception as error:
        errors.put(error)
        raise SystemExit(1) from None
