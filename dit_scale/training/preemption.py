"""Requests to stop: a signal sets a flag, the ranks agree on it at a step boundary.

Imports neither torch nor DeepSpeed, so that the handlers can be installed before those seconds begin.
"""

import json
import signal
from pathlib import Path
from types import FrameType

from dit_scale.files import write_json

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
MARKER = "stopped"


class StopRequest:
    """Whether somebody asked this process to stop, and how."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> "StopRequest":
        """Catch USR1, TERM and INT from now on; a second INT interrupts at once."""
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal_name is not None


def write_marker(run_dir: Path, reason: str, step: int) -> None:
    """Say that the run stopped on request with everything saved; a launcher requeues on this file."""
    write_json(run_dir / MARKER, {"reason": reason, "step": step})


def clear_marker(run_dir: Path) -> str | None:
    """Remove the marker of an earlier stop and return its reason."""
    path = run_dir / MARKER
    if not path.is_file():
        return None
    try:
        reason = json.loads(path.read_text()).get("reason")
    except ValueError:
        reason = None
    path.unlink()
    return reason
