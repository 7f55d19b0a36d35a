"""An action that storage or a network makes fail for a while, tried again."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from dit_scale.errors import Failure

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 30.0

_Result = TypeVar("_Result")


class RetryPolicy:
    """Pauses between tries, each longer than the last, until they have taken too long or an event ends them."""

    def __init__(self, seconds: float, stop: threading.Event | None = None, log_level: int = logging.WARNING):
        self.seconds, self._stop, self._log_level = seconds, stop or threading.Event(), log_level
        self._deadline = time.monotonic() + seconds
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def pause(self, trouble: str) -> bool:
        """Log what is wrong and wait; return whether to try again."""
        left = self._deadline - time.monotonic()
        if left <= 0 or self._stop.is_set():
            return False
        log.log(self._log_level, "%s; trying again, for %.0f s at most", trouble, left)
        # By chance, so that a thousand ranks do not come back at one moment; not from the generators that users seed.
        self._stop.wait(min(left, self._pause_seconds * random.SystemRandom().uniform(0.5, 1.0)))
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        return not self._stop.is_set()


def with_retries(
    action: Callable[[], _Result], trouble_of: Callable[[Exception], str], retries: RetryPolicy
) -> _Result:
    """Return what ``action`` returns, trying again while it raises; in the end raises Failure.

    ``trouble_of`` says what went wrong, or raises what no retry can fix.
    """
    while True:
        try:
            return action()
        except Exception as error:
            trouble = trouble_of(error)
            if not retries.pause(trouble):
                raise Failure(
                    f"{trouble}, for {retries.seconds:g} s; look to that storage, then run the same again, "
                    f"which goes on where this ended"
                ) from error
