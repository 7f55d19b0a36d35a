"""All that a run writes down as it goes: metrics, validation losses, keys, records set aside; to files and wandb."""

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist

from dit_scale.config import Config
from dit_scale.distributed.runtime import World
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.training.dashboard import Dashboard
from dit_scale.training.metrics import Console, Lines, cut_back, say

METRICS, VALIDATION, RANKS = "metrics.jsonl", "validation.jsonl", "ranks.jsonl"
_BY_RANK = ("keys-rank{}.jsonl", "set-aside-rank{}.jsonl")

log = logging.getLogger(__name__)


class RunLog:
    """The run folder's logs, cut back to the step at which the run goes on."""

    def __init__(self, config: Config, world: World, step: int, conveniences: Conveniences):
        """Open the logs (collective)."""
        self._run_dir, self._world, self._conveniences = Path(config.run_dir), world, conveniences
        self._files: dict[str, Lines] = {}
        self._keys, self._set_aside = (name.format(world.rank) for name in _BY_RANK)
        self._records_keys = config.data.record_keys
        self.cut_back(step)
        self._console = Console(config.train.steps, config.log.every_steps) if world.is_rank_zero else None
        self._dashboard = Dashboard(config, self._run_dir, conveniences) if world.is_rank_zero else None

    def cut_back(self, step: int) -> None:
        """Forget what came after a step, which is about to come again (collective)."""
        self._close_files()
        dist.barrier()
        if self._world.is_rank_zero:
            for pattern in (METRICS, VALIDATION, RANKS, *(name.format("*") for name in _BY_RANK)):
                for path in self._run_dir.glob(pattern):
                    cut_back(path, step)
        dist.barrier()

    def records(self, step: int, keys: list[str], damaged: dict[int, str]) -> None:
        """Write which records this rank consumed, where that is asked for, and which it set aside."""
        if self._records_keys:
            whole = [key for place, key in enumerate(keys) if place not in damaged]
            self._lines(self._keys).write({"step": step, "keys": whole})
        for place, how in damaged.items():
            log.warning("step %d: %s; it is set aside", step, how)
            self._lines(self._set_aside).write({"step": step, "key": keys[place], "reason": how})

    def metrics(self, metrics: dict[str, Any]) -> None:
        """Write a step's numbers (rank zero)."""
        if self._console is not None and self._dashboard is not None:
            self._lines(METRICS).write(metrics)
            self._console.show(metrics)
            self._dashboard.log(metrics)

    def ranks(self, line: dict[str, Any]) -> None:
        """Write what each rank spent its time on (rank zero)."""
        if self._world.is_rank_zero:
            with self._guarded(RANKS):
                self._lines(RANKS).write(line)

    def validation(self, step: int, loss: float, num_images: int) -> None:
        """Write a validation loss (rank zero)."""
        if self._dashboard is not None:
            self._lines(VALIDATION).write({"step": step, "validation_loss": loss, "images": num_images})
            self._dashboard.log({"step": step, "validation_loss": loss})
            say(f"step {step}  validation loss {loss:.5f} over {num_images} images")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Tell of an evaluation, which has written its own file (rank zero)."""
        if self._dashboard is not None:
            self._dashboard.log({"step": step} | {f"evaluation/{name}": value for name, value in metrics.items()})
            say(f"step {step}  evaluation  " + "  ".join(f"{name} {value:.5g}" for name, value in metrics.items()))

    def picture(self, path: Path, step: int) -> None:
        """Log a preview grid (rank zero)."""
        if self._dashboard is not None:
            self._dashboard.log_picture(path, step)

    def _guarded(self, name: str) -> AbstractContextManager[None]:
        """Let what goes wrong with a file end the run, unless the run can do without it."""
        return self._conveniences.attempt(f"writing {RANKS}") if name == RANKS else nullcontext()

    def _lines(self, name: str) -> Lines:
        if name not in self._files:
            self._files[name] = Lines(self._run_dir / name)
        return self._files[name]

    def __enter__(self) -> Self:
        return self

    def sync(self) -> None:
        """Have all lines on disk, before a checkpoint that comes after them is."""
        for name, lines in self._files.items():
            with self._guarded(name):
                lines.sync()

    def _close_files(self) -> None:
        for name, lines in self._files.items():
            with self._guarded(name):
                lines.close()
        self._files = {}

    def __exit__(self, *exception: object) -> None:
        try:
            self._close_files()
        finally:
            if self._dashboard is not None:
                self._dashboard.close()
