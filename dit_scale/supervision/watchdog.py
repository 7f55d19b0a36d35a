"""The watchdog: a thread a rank that notices when the run hangs, says through whom, and ends every rank.

Each rank leaves a sign of life in the launcher's store every few seconds. A few ranks read them all; who finds that
the run does not go on posts a verdict, which all read. Nothing here waits for the main thread or reads a disk before
the report is out.
"""

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from torch.distributed import Store

from dit_scale.config import WatchdogConfig
from dit_scale.distributed.runtime import World
from dit_scale.supervision.hangs import Hang, Heartbeat, LastHeard, Limits, find_hang
from dit_scale.supervision.heartbeats import Heartbeats
from dit_scale.supervision.markers import HUNG, clear_marker, write_marker
from dit_scale.supervision.phases import Phases

EXIT_STATUS = 4
_INNERMOST_FRAMES = 4
_LAST_SECONDS = 20.0
"""For the report and the file `hung`; a disk that hangs, too, must not keep a rank."""

log = logging.getLogger(__name__)


class Watchdog:
    """Watches from entering to leaving; with both limits 0 it does nothing."""

    def __init__(self, config: WatchdogConfig, phases: Phases, world: World, store: Store, run_dir: Path):
        self._limits, self._phases, self._world, self._run_dir = Limits.of(config), phases, world, run_dir
        self._is_on = bool(config.step_seconds or config.long_seconds)
        self._shared = Heartbeats(store, world.world_size) if self._is_on and world.world_size > 1 else None
        self._judges = {0, 1, world.world_size - 1}  # more would only load the store of a large run
        self._clock = _Clock()
        self._own = Heartbeat(world.rank, socket.gethostname(), os.getpid(), "setup", 0, True, 0, 0.0, beat=0)
        self._changed_at = 0.0
        self._seen: dict[int, tuple[Heartbeat, float]] = {}
        self._stacks_of_zero: dict[int, list[str]] = {}
        """Rank zero's last stack, since nobody can ask the store for it once that is frozen, too."""
        self._asked_at: float | None = None
        """Since when the store owes an answer."""
        self._main_thread = threading.main_thread().ident
        self._stop, self._end = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=f"watchdog-{target.__name__}", daemon=True)
            for target in (self._beat, self._guard)
        ]

    def __enter__(self) -> Self:
        if self._world.is_rank_zero and (hung := clear_marker(self._run_dir, HUNG)) is not None:
            log.warning("the last attempt hung: %s", hung.get("reason"))
        if self._is_on:
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching; a rank that fails takes no leave, so that the others notice if it does not end."""
        if not self._is_on:
            return
        if self._end.locked():  # the watchdog is ending this process, and its status and report are better
            time.sleep(_LAST_SECONDS)
        self._stop.set()
        self._threads[0].join(timeout=2.0)
        if error is None and self._shared is not None and not self._threads[0].is_alive():
            self._take_leave(self._shared)

    def _take_leave(self, shared: Heartbeats) -> None:
        """Tell the others not to wait; rank zero, whose process may hold the store, waits for theirs a little."""
        with suppress(RuntimeError):  # which a store raises that has gone before
            shared.publish(replace(self._own, beat=self._own.beat + 1, has_left=True), ())
            deadline = time.monotonic() + 5.0
            while self._world.is_rank_zero and time.monotonic() < deadline:
                if all(heartbeat.has_left for heartbeat in shared.heartbeats()):
                    return
                time.sleep(0.05)

    # ------------------------------------------------------------ a thread that gives and reads signs of life

    def _beat(self) -> None:
        while not self._stop.wait(self._limits.beat_seconds):
            self._feel_pulse()
            if self._shared is None:
                self._judge()
                continue
            self._asked_at = self._clock.seconds
            try:
                self._exchange(self._shared)
            except RuntimeError as error:  # its process has ended, which is the launcher's business
                log.warning("the watchdog lost the launcher's store (%s)", str(error).partition("\n")[0])
                self._shared = None
                self._seen = {}
            self._asked_at = None

    def _feel_pulse(self) -> None:
        place, now = self._phases.place, self._clock.seconds
        if place.num_changes != self._own.num_changes:
            self._changed_at = now
        self._own = replace(
            self._own,
            phase=place.phase,
            step=place.step,
            is_long=place.is_long,
            num_changes=place.num_changes,
            phase_seconds=now - self._changed_at,
            beat=self._own.beat + 1,
        )

    def _exchange(self, shared: Heartbeats) -> None:
        shared.publish(self._own, self._stack())
        if (verdict := shared.verdict()) is not None:
            self._end_process(verdict)
        if self._world.rank in self._judges:
            for heartbeat in shared.heartbeats():
                if heartbeat.rank not in self._seen or heartbeat.beat != self._seen[heartbeat.rank][0].beat:
                    self._seen[heartbeat.rank] = heartbeat, self._clock.seconds
            self._stacks_of_zero = shared.stacks([0])
            self._judge()

    def _judge(self) -> None:
        seen = self._seen if self._shared is not None else {self._world.rank: (self._own, self._clock.seconds)}
        last_heard = [LastHeard(heartbeat, self._clock.seconds - at) for heartbeat, at in seen.values()]
        if self._shared is not None:
            last_heard += [self._absent(rank) for rank in range(self._world.world_size) if rank not in seen]
        hang = find_hang(last_heard, self._limits)
        if hang is None:
            return
        ranks = [culprit.heartbeat.rank for culprit in hang.shown]
        stacks = self._shared.stacks(ranks) if self._shared is not None else {self._world.rank: self._stack()}
        verdict = {"report": hang.report(stacks), "hung": hang.record(), "author": self._world.rank}
        if self._shared is None or self._shared.post_verdict(verdict):
            self._end_process(verdict)

    def _absent(self, rank: int) -> LastHeard:
        """Stand in for a rank that has said nothing yet."""
        return LastHeard(Heartbeat(rank, "host unknown", 0, "setup", 0, True, 0, 0.0, beat=0), self._clock.seconds)

    def _stack(self) -> list[str]:
        frame = sys._current_frames().get(self._main_thread or 0)
        return stack_lines(frame)

    # ------------------------------------------------------------ a thread that the store cannot hold up

    def _guard(self) -> None:
        """Keep the clock, and end this rank where the store gives no answer: it stands and falls with rank zero."""
        while not self._stop.wait(self._limits.beat_seconds):
            self._clock.tick(self._limits.beat_seconds)
            asked_at = self._asked_at
            if asked_at is None:
                continue
            silent_seconds = self._clock.seconds - asked_at
            if 0 < self._limits.step_seconds <= silent_seconds:  # it answers by itself, whatever its process is at
                self._end_without_store(silent_seconds)

    def _end_without_store(self, silent_seconds: float) -> None:
        """Name rank zero; the lowest rank that lives writes that down, which the others can tell by the file."""
        heartbeat = self._seen[0][0] if 0 in self._seen else self._absent(0).heartbeat
        hang = Hang("no sign of life", (LastHeard(heartbeat, silent_seconds),), (LastHeard(self._own, 0.0),))
        report = hang.report(self._stacks_of_zero)
        report += "\n  the store, with rank zero or with torchrun on its node, gives no answer"
        threading.Thread(target=_exit_after, args=(_LAST_SECONDS,), daemon=True).start()
        time.sleep(min(5.0, 0.2 * max(0, self._world.rank - 1)))
        author = -1 if (self._run_dir / HUNG).is_file() else self._world.rank
        self._end_process({"report": report, "hung": hang.record(), "author": author})

    # ------------------------------------------------------------ the end

    def _end_process(self, verdict: Mapping[str, Any]) -> None:
        """Write down what is known and end this process; who found the hang ends last, so that all can read of it."""
        with self._end:
            threading.Thread(target=_exit_after, args=(_LAST_SECONDS,), daemon=True).start()
            is_author = verdict["author"] == self._world.rank
            if is_author:
                _print(_block(verdict["report"], self._run_dir))
            _print(f"rank {self._world.rank} ({self._own.host}), all threads:\n{_all_stacks()}\n")
            if is_author:
                write_marker(self._run_dir, HUNG, verdict["hung"])
            time.sleep(self._limits.beat_seconds * (2 if is_author else 1))
            os._exit(EXIT_STATUS)


class _Clock:
    """Seconds for which this process ran: time in which it was stopped, with all others perhaps, does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = time.monotonic()

    def tick(self, expected_seconds: float) -> None:
        """Add the time since the last tick, not much more than was to be expected."""
        now = time.monotonic()
        self.seconds += min(now - self._last, 2 * expected_seconds + 1.0)
        self._last = now


def stack_lines(frame: FrameType | None) -> list[str]:
    """Return a stack in short, the innermost frame last: the project's own frames and the last few; reads no source."""
    lines: list[str] = []
    while frame is not None:
        line = f"{_short(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        if len(lines) < _INNERMOST_FRAMES or line.startswith(f"{__package__.partition('.')[0]}/"):
            lines.append(line)
        frame = frame.f_back
    return lines[::-1]


def _short(file_name: str) -> str:
    """Return a source file's name from its package on."""
    roots = [root for root in sys.path if root and file_name.startswith(f"{root}/")]
    return file_name.removeprefix(f"{max(roots, key=len)}/") if roots else file_name


def _block(report: str, run_dir: Path) -> str:
    line = "=" * 100
    end = f"all ranks end with status {EXIT_STATUS}; nothing is saved, the last checkpoint is good ({run_dir / HUNG})"
    return f"\n{line}\nHANG: {report}\n{end}\n{line}\n"


def _all_stacks() -> str:
    """Return the stacks of this process's threads, taken without a disk and without waiting for any of them."""
    descriptor = os.memfd_create("stacks")
    faulthandler.dump_traceback(descriptor, all_threads=True)
    size = os.lseek(descriptor, 0, os.SEEK_CUR)
    return os.pread(descriptor, size, 0).decode(errors="replace")


def _print(text: str) -> None:
    """Write to the log in one piece, so that ranks do not mix their lines."""
    os.write(2, text.encode())


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(EXIT_STATUS)
