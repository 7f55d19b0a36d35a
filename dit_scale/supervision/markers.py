"""Files in the run folder that tell a launcher how the last attempt ended; each is gone with the next start.

Imports neither torch nor DeepSpeed, as all that is needed before them or without them.
"""

from pathlib import Path
from typing import Any, TypedDict

from dit_scale.documents import parsed_or_none
from dit_scale.files import write_json

STOPPED, HUNG = "stopped", "hung"
"""Stopped on request with everything saved; ended by the watchdog with nothing saved."""


class _Marker(TypedDict, total=False):
    reason: str
    step: int
    rank: int | None


def write_marker(run_dir: Path, name: str, content: dict[str, Any]) -> None:
    """Leave a marker: its reason and step, and what else is known."""
    write_json(run_dir / name, content)


def read_marker(run_dir: Path, name: str) -> dict[str, Any] | None:
    """Return what a marker says, None where there is none; one that cannot be read says nothing but itself."""
    try:
        content: Any = parsed_or_none((run_dir / name).read_bytes(), _Marker)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content or {}


def clear_marker(run_dir: Path, name: str) -> dict[str, Any] | None:
    """Remove a marker and return what it said."""
    content = read_marker(run_dir, name)
    (run_dir / name).unlink(missing_ok=True)
    return content
