"""A run's life as seen from outside: ``history.jsonl`` has a line for each start, each end and each kind of trouble.

Imports neither torch nor DeepSpeed, so that `dit-scale status` answers at once. A start without an end was killed:
SIGKILL, a power cut, the kernel out of memory.
"""

import errno
import json
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NotRequired, Self, TypedDict, TypeVar, cast

from dit_scale.distributed.runtime import World, launcher_job
from dit_scale.documents import parsed_or_none
from dit_scale.errors import InputError, NonFinite
from dit_scale.supervision.markers import HUNG, STOPPED, clear_marker, read_marker

HISTORY, LOCK = "history.jsonl", ".lock"
DONE, HANG, KILLED, FAILURE = "done", "hang", "killed", "failure"
BAD_INPUT, NON_FINITE, OUT_OF_MEMORY, FULL_DISK = "bad_input", "non_finite", "out_of_memory", "full_disk"

log = logging.getLogger(__name__)

Event = dict[str, Any]
_Line = TypeVar("_Line")


class Step(TypedDict):
    """A line that tells of a step."""

    step: int


class _Event(TypedDict):
    event: str
    step: int
    time: float
    cause: NotRequired[str]
    restart: NotRequired[int | None]


class _Trouble(TypedDict):
    event: Literal["trouble"]
    step: int | None
    time: float
    what: str
    error: str


@dataclass(frozen=True)
class Attempt:
    """One start of a run, and how it ended."""

    start: Event
    ends: list[Event] = field(default_factory=list)
    """As ranks came to write them; none where it runs or was killed."""
    troubles: list[Event] = field(default_factory=list)
    """What failed beside training, the first of each kind."""

    @property
    def end(self) -> Event | None:
        """The end that caused the others: the first, or a hang's, after which its frozen rank may yet write first."""
        return next((end for end in self.ends if end.get("cause") == HANG), next(iter(self.ends), None))

    @property
    def cause(self) -> str:
        """Why it ended; ``killed`` where nobody could write it down."""
        return str(self.end.get("cause", FAILURE)) if self.end is not None else KILLED


class Recorder:
    """Writes a start when entered and an end when left, whichever way.

    Rank zero enters it, holding the folder's lock; the others only leave it, so that an attempt which finds the
    folder taken writes nothing into another's history.
    """

    def __init__(self, run_dir: Path, world: World, zero_stage: int):
        self._run_dir, self._world, self._zero_stage = run_dir, world, zero_stage
        self._has_ended = False

    def finish(self, cause: str | None, step: int) -> None:
        """Write that the run is done, or stopped for a cause, with everything saved (rank zero)."""
        self._has_ended = True
        if self._world.is_rank_zero:
            write_end(self._run_dir, cause or DONE, step, saved=True)

    def __enter__(self) -> Self:
        settle_hang(self._run_dir)
        clear_marker(self._run_dir, STOPPED)
        write_start(self._run_dir, self._world, self._zero_stage)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self._has_ended:
            return
        self._has_ended = True
        sentence = " ".join(str(error).split())[:500]
        write_end(
            self._run_dir,
            cause_of(error),
            last_step(self._run_dir),
            saved=False,
            rank=self._world.rank,
            error=f"{type(error).__name__}: {sentence}",
        )


def write_start(run_dir: Path, world: World, zero_stage: int) -> None:
    """Append a start, at the step of the last save."""
    job = launcher_job()
    event = {
        "event": "start",
        "time": time.time(),
        "step": last_save(run_dir)[0],
        "world_size": world.world_size,
        "zero_stage": zero_stage,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": job.number,
        "restart": job.restart,
    }
    _append(run_dir / HISTORY, event)


def write_end(run_dir: Path, cause: str, step: int, saved: bool, **more: Any) -> None:
    """Append an end; also for a watchdog, which ends the process itself."""
    event = {"event": "end", "time": time.time(), "step": step, "cause": cause, "saved": saved}
    _append_if_possible(run_dir / HISTORY, event | more)


def write_trouble(run_dir: Path, what: str, step: int | None, rank: int, error: str, stack: str) -> None:
    """Append what failed beside training, which goes on."""
    event = {"event": "trouble", "time": time.time(), "step": step, "what": what, "rank": rank, "error": error}
    _append_if_possible(run_dir / HISTORY, event | {"stack": stack})


def settle_hang(run_dir: Path) -> None:
    """Write down a hang of which the attempt before left the marker; the watchdog tells of it and removes it."""
    marker = read_marker(run_dir, HUNG)
    attempts = read_history(run_dir)
    if marker is not None and attempts and attempts[-1].cause != HANG:
        write_end(run_dir, HANG, int(marker.get("step", 0)), saved=False, rank=marker.get("rank"))


def read_history(run_dir: Path) -> list[Attempt]:
    """Return all attempts, oldest first; a torn line does not count."""
    attempts: list[Attempt] = []
    for event in _events(run_dir / HISTORY):
        if event.get("event") == "start":
            attempts.append(Attempt(event))
        elif event.get("event") == "end" and attempts:
            attempts[-1].ends.append(event)
        elif event.get("event") == "trouble" and attempts:
            attempts[-1].troubles.append(event)
    return attempts


def last_save(run_dir: Path) -> tuple[int, Path | None]:
    """Return step and folder of the last complete checkpoint; step 0 where there is none."""
    checkpoints = run_dir / "checkpoints"
    try:
        named = checkpoints / (checkpoints / "latest").read_text().strip()
    except OSError:
        named = checkpoints / "none"
    found = named if named.name.startswith("step-") and named.is_dir() else None
    newest = found or next(iter(sorted(checkpoints.glob("step-*"), reverse=True)), None)
    number = newest.name.removeprefix("step-") if newest else ""
    return (int(number), newest) if number.isdigit() else (0, None)


def last_step(run_dir: Path) -> int:
    """Return the step of the last whole line of metrics.jsonl, else that of the last save."""
    lines = tail(run_dir / "metrics.jsonl", 1, Step)
    return lines[-1]["step"] if lines else last_save(run_dir)[0]


def tail(path: Path, count: int, shape: type[_Line], line_bytes: int = 1024) -> list[_Line]:
    """Return those of the last whole lines of a file that are JSON of a shape; it may be long and may be growing."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - (count + 1) * line_bytes)
            file.seek(start)
            text = file.read()
    except OSError:
        return []
    lines = text.split(b"\n")[1 if start else 0 : -1]
    return _whole(lines[-count:], shape)


def cause_of(error: BaseException) -> str:
    """Name the cause behind an exception, which may have become one sentence on its way."""
    origin: BaseException | None = error
    while origin is not None:
        if (cause := _cause_of_one(origin)) is not None:
            return cause
        origin = origin.__cause__
    return FAILURE


def _cause_of_one(error: BaseException) -> str | None:
    """Name the cause that an exception stands for; by class name where torch would have to be imported."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, KeyboardInterrupt):
        return "SIGINT"
    if "OutOfMemoryError" in names or isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return OUT_OF_MEMORY
    if isinstance(error, NonFinite):
        return NON_FINITE
    if isinstance(error, InputError):
        return BAD_INPUT
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FULL_DISK
    return None


def _append_if_possible(path: Path, event: Event) -> None:
    """Append a line; on a full disk, perhaps, what it tells of is worth more than the line."""
    try:
        _append(path, event)
    except OSError as failure:
        log.warning("the %s of the run is not written down (%s)", event["event"], failure)


def _append(path: Path, event: Event) -> None:
    """Append a line in one write, on a line of its own even after a torn one, and have it on disk."""
    line = (json.dumps(event) + "\n").encode()
    with path.open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        os.fsync(file.fileno())


def _events(path: Path) -> list[Event]:
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    shape: Any = _Event | _Trouble
    return cast(list[Event], _whole(lines, shape))


def _whole(lines: list[bytes], shape: type[_Line]) -> list[_Line]:
    return [value for line in lines if (value := parsed_or_none(line, shape)) is not None]
