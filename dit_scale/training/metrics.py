"""What a run reports: metrics.jsonl and the console; cut back to the checkpoint after a kill."""

import json
import logging
import os
import time
from collections import deque
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from dit_scale.documents import parsed_or_none
from dit_scale.files import atomic_write, is_full
from dit_scale.supervision.history import Step

log = logging.getLogger(__name__)


def say(text: str) -> None:
    """Print a line; a log that has no room, or that nobody reads any more, stops no training."""
    with suppress(OSError):
        print(text, flush=True)


class Lines:
    """A file of JSON lines that is appended to, each line whole as soon as it is written.

    On a full disk the lines wait in memory, and are written when there is room.
    """

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._waiting = b""
        self._is_full = False

    def write(self, value: dict[str, Any]) -> None:
        """Append one line."""
        self._waiting += (json.dumps(value) + "\n").encode()
        self._write_waiting()

    def _write_waiting(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]
            self._is_full = False
        except OSError as error:
            if not is_full(error):
                raise
            if not self._is_full:
                log.error("no room for '%s' (%s): its lines wait in memory", self._path, error.strerror)
            self._is_full = True

    def sync(self) -> None:
        """Have what was written on disk."""
        self._write_waiting()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; what was written is on disk."""
        self.sync()
        if self._waiting:
            log.error("lines of '%s' are lost: there was no room for them", self._path)
        os.close(self._descriptor)


def cut_back(path: Path, step: int) -> None:
    """Keep the lines of steps up to ``step``; later ones are about to come again, what is no such line is dropped."""
    if not path.is_file():
        return
    with path.open("rb") as old, atomic_write(path) as new:
        for line in old:
            found = parsed_or_none(line, Step)
            if found is not None and found["step"] > step:
                break
            if found is not None and line.endswith(b"\n"):
                new.write(line)


_RATE = "_learning_rate"
"""The end of the name of a rate that differs from the run's."""


class Console:
    """Lines on rank zero's output: step, loss, images a second, time left."""

    def __init__(self, total_steps: int, every_steps: int):
        self._total_steps = total_steps
        self._every_steps = every_steps
        self._recent: deque[dict[str, Any]] = deque(maxlen=max(1, every_steps))
        self._started = time.monotonic()

    def show(self, metrics: dict[str, Any]) -> None:
        """Print every n-th step, and the first and the last."""
        self._recent.append(metrics)
        step = metrics["step"]
        if step % self._every_steps and step != self._total_steps and len(self._recent) > 1:
            return
        count = len(self._recent)
        seconds = sum(entry["step_seconds"] for entry in self._recent) / count
        losses = [entry["loss"] for entry in self._recent if entry["loss"] is not None]
        loss = sum(losses) / max(1, len(losses))
        grad_norm = "none" if metrics["grad_norm"] is None else f"{metrics['grad_norm']:.3f}"
        left = timedelta(seconds=round(seconds * (self._total_steps - step)))
        others = [f" ({name.removesuffix(_RATE)} {metrics[name]:.1e})" for name in metrics if name.endswith(_RATE)]
        elapsed = timedelta(seconds=round(time.monotonic() - self._started))
        say(
            f"step {step}/{self._total_steps}  loss {loss:.4f}  grad norm {grad_norm}  "
            f"rate {metrics['learning_rate']:.1e}{''.join(others)}  {metrics['images_per_second']:.0f} images/s  "
            f"elapsed {elapsed}  left {left}"
        )
