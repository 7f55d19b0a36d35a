"""How far a long piece of work is, for a person who looks on: a bar on a terminal, else a line now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_SECONDS_ON_A_TERMINAL = 0.5
_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def shown(what: str, total: int, count: Callable[[], int], unit: str = "images") -> Iterator[None]:
    """Show ``count()`` of ``total`` on stderr, with the rate and the time left, while the body runs and at its end."""
    if not total:
        yield
        return
    stop = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _show_lines
    thread = threading.Thread(target=show, args=(what, total, count, unit, stop), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def passed_on(
    what: str, items: Iterable[T], total: int, unit: str = "shards", size: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """Yield the items, showing how many of ``total`` are done; ``size`` says how many an item counts for."""
    done = 0
    with shown(what, total, lambda: done, unit):
        for item in items:
            yield item
            done += size(item)


def _show_bar(what: str, total: int, count: Callable[[], int], unit: str, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        for done, pace in _paces(total, count, unit, stop, _SECONDS_ON_A_TERMINAL):
            bar.update(task, completed=done, description=pace)


def _show_lines(what: str, total: int, count: Callable[[], int], unit: str, stop: threading.Event) -> None:
    for done, pace in _paces(total, count, unit, stop, _SECONDS_BETWEEN_LINES):
        print(f"{what} {done}/{total}  {pace}", file=sys.stderr, flush=True)


def _paces(
    total: int, count: Callable[[], int], unit: str, stop: threading.Event, seconds: float
) -> Iterator[tuple[int, str]]:
    """Yield the count and the pace since the start, every so many seconds and once at the end."""
    first, started = count(), time.monotonic()
    while True:
        is_last = stop.wait(seconds)
        done = count()
        rate = (done - first) / max(time.monotonic() - started, 1e-9)
        left = f"{(total - done) / max(rate, 1e-9):.0f} s" if rate > 0 or done == total else "unknown"
        yield done, f"{rate:.1f} {unit}/s  left {left}"
        if is_last:
            return
