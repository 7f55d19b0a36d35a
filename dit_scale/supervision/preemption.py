"""Requests to stop: a signal sets a flag, the ranks agree on it at a step boundary.

Imports neither torch nor DeepSpeed, so that the handlers can be installed before those seconds begin.
"""

import signal
import time
from types import FrameType

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked this process to stop, and how."""

    def __init__(self, after_step: int | None = None) -> None:
        self.signal_name: str | None = None
        self.after_step = after_step
        """The step after which to stop without being asked, where that is set."""

    def install(self) -> "StopRequest":
        """Catch USR1, TERM and INT from now on; a second INT interrupts at once."""
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(number).name

    def ask(self, reason: str) -> None:
        """Ask for a stop for another reason than a signal."""
        self.signal_name = self.signal_name or reason

    def __bool__(self) -> bool:
        return self.signal_name is not None


class TimeLimit:
    """When this job ends, and whether the time that is left is still more than a save needs."""

    def __init__(self, end_time: float | None, margin_seconds: float):
        self._end_time, self._margin_seconds = end_time, margin_seconds

    def is_near(self, save_seconds: float, step_seconds: float) -> bool:
        """Whether to save now; ``save_seconds`` is what the longest save took, or is expected to take."""
        if self._end_time is None:
            return False
        return self._end_time - time.time() < 2.0 * save_seconds + 2.0 * step_seconds + self._margin_seconds
