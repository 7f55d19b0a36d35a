"""When a run saves and what it says of it; a disk that is full stops no training."""

import logging
import time
from pathlib import Path

from dit_scale.checkpoint import Description, Outcome, Retention, Saver
from dit_scale.config import CheckpointConfig
from dit_scale.distributed.runtime import World
from dit_scale.errors import Failure
from dit_scale.evaluation import HIGHER_IS_BETTER
from dit_scale.training.metrics import say
from dit_scale.training.state import TrainingState

log = logging.getLogger(__name__)

_BYTES_PER_SECOND = 200e6
"""Of a disk that has not been measured yet."""
_LAST_TRIES, _PAUSE_SECONDS = 6, 10.0
_PATIENCE_SECONDS = 60.0
"""For a save under way when training has failed; a rank that died cannot end its own."""


class Saving:
    """The checkpoints of a run as its settings say."""

    def __init__(self, checkpoints: Path, settings: CheckpointConfig, world: World, num_bytes: int):
        """Collective; ``num_bytes`` is what a checkpoint takes."""
        retention = Retention(
            settings.keep,
            settings.keep_every_steps,
            settings.keep_best,
            settings.best_by,
            higher_is_better=settings.best_by.startswith(HIGHER_IS_BETTER),
        )
        self._saver = Saver(checkpoints, world, retention, in_background=settings.in_background)
        self._settings, self._num_bytes = settings, num_bytes
        self._failed_at: float | None = None
        self._last: tuple[Description, TrainingState] | None = None
        self.retries_now = False
        """Whether the ranks have agreed to save again after one that failed."""

    def seconds_expected(self) -> float:
        """Return how long a save is expected to take: as the longest so far did."""
        return self._saver.longest_seconds or self._num_bytes / _BYTES_PER_SECOND

    def wants_retry(self) -> bool:
        """Whether this rank, rank zero alone, has seen a save fail so long ago that it is to be tried again."""
        return self._failed_at is not None and time.monotonic() - self._failed_at > self._settings.retry_seconds

    def save(self, description: Description, state: TrainingState) -> None:
        """Save; training goes on as soon as the state is copied (collective)."""
        self._saver.wait()  # which may yet fail, and ask for this save
        self._failed_at, self.retries_now = None, False
        self._last = (description, state)
        self._saver.save(description, state.part(), self._tell)

    def finish(self, or_fail: bool = False) -> None:
        """Wait until all is written; with ``or_fail`` try again for a while, then raise Failure (collective)."""
        outcome = self._saver.wait()
        for _ in range(_LAST_TRIES if or_fail else 0):
            if outcome is None or outcome.trouble is None or self._last is None:
                return
            time.sleep(_PAUSE_SECONDS)
            self.save(*self._last)
            outcome = self._saver.wait()
        if or_fail and outcome is not None and outcome.trouble is not None:
            raise Failure(
                f"step {outcome.step} could not be saved ({outcome.trouble}); make room and start the run again, which "
                f"goes on from the last good checkpoint"
            )

    def close(self) -> None:
        """Let a save under way come to its end."""
        self._saver.close(_PATIENCE_SECONDS)

    def _tell(self, outcome: Outcome) -> None:
        """Say what became of a save (rank zero's writer)."""
        if outcome.trouble is None:
            say(f"saved step {outcome.step}: {outcome.num_bytes / 1e6:.1f} MB in {outcome.seconds:.2f} s")
            return
        self._failed_at = time.monotonic()
        log.error(
            "STEP %d IS NOT SAVED (%s). Training goes on; the next try comes in %g s. Make room.",
            outcome.step,
            outcome.trouble,
            self._settings.retry_seconds,
        )
