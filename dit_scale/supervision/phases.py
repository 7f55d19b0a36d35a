"""What this rank does: in which phase it is, at which step, and how many seconds each phase took.

Every rank enters the same phases in the same order, so that the number of changes tells who is behind.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

Phase = Literal["setup", "data", "compute", "save", "validation", "evaluation", "preview"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Place:
    """Where a rank stands."""

    phase: Phase = "setup"
    step: int = 0
    """The step under way, or the last one; 0 before the first."""
    num_changes: int = 0
    """How often a phase began or ended so far."""
    num_steps: int = 0
    """Steps that this process has begun."""

    @property
    def is_long(self) -> bool:
        """Whether this may well take long: everything but a step; the first step compiles."""
        return self.phase not in ("data", "compute") or self.num_steps <= 1


class Phases:
    """A rank's phases: ``with phases("data", step=7): …``; outside of all it is in ``setup``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.place = Place()  # replaced whole, so that other threads read one that fits together
        self._clock = clock
        self._since = clock()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: Phase, step: int | None = None) -> Iterator[None]:
        """Be in a phase, afterwards in the one around it; ``step`` says that a step begins."""
        around = self.place.phase
        if step is not None:
            self.place = replace(self.place, step=step, num_steps=self.place.num_steps + 1)
        self._change(phase)
        try:
            yield
        finally:
            self._change(around)

    def lap(self) -> dict[Phase, float]:
        """Return the seconds spent in each phase since the last lap."""
        self._add_time()
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def _change(self, phase: Phase) -> None:
        self._add_time()
        self.place = replace(self.place, phase=phase, num_changes=self.place.num_changes + 1)

    def _add_time(self) -> None:
        now = self._clock()
        self._seconds[self.place.phase] += now - self._since
        self._since = now
