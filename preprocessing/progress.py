"""How far the encoding is, for a person who looks on: a bar on a terminal, else a line now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_SECONDS_ON_A_TERMINAL = 0.5
_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def shown(total: int, count: Callable[[], int]) -> Iterator[None]:
    """Show ``count()`` of ``total`` images on stderr, with images a second and time left, while the body runs."""
    console = Console(stderr=True)
    stop = threading.Event()
    show = _show_bar if console.is_terminal else _show_lines
    thread = threading.Thread(target=show, args=(total, count, stop, console), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show_bar(total: int, count: Callable[[], int], stop: threading.Event, console: Console) -> None:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        for done, pace in _paces(total, count, stop, _SECONDS_ON_A_TERMINAL):
            bar.update(task, completed=done, description=pace)


def _show_lines(total: int, count: Callable[[], int], stop: threading.Event, console: Console) -> None:
    for done, pace in _paces(total, count, stop, _SECONDS_BETWEEN_LINES):
        print(f"encoded {done}/{total}  {pace}", file=sys.stderr, flush=True)


def _paces(total: int, count: Callable[[], int], stop: threading.Event, seconds: float) -> Iterator[tuple[int, str]]:
    """Yield the count and the pace since the start, every so many seconds and once at the end."""
    first, started = count(), time.monotonic()
    while True:
        is_last = stop.wait(seconds)
        done = count()
        rate = (done - first) / (time.monotonic() - started)
        left = f"{(total - done) / max(rate, 1e-9):.0f} s" if rate > 0 or done == total else "unknown"
        yield done, f"{rate:.1f} images/s  left {left}"
        if is_last:
            return
