"""An iterator run ahead of its consumer by a thread, so that both work at once."""

import queue
import threading
import weakref
from collections.abc import Iterable
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Yields the items, up to ``depth`` of them made before they are asked for; what fails in making fails here.

    The thread ends with ``close``, when nobody holds this any more, and at exit; each waits for the item that is being
    made, for ``patience_seconds`` at most where they are given. It is a daemon, so that an item which never comes
    cannot hold up the interpreter's exit.
    """

    def __init__(self, items: Iterable[T], depth: int, name: str, patience_seconds: float | None = None):
        self._ready: queue.Queue[tuple[Any, Exception | None]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        thread = threading.Thread(target=_make, args=(items, self._ready, self._stop), name=name, daemon=True)
        # Also at exit: torch aborts where a thread is still inside it.
        self.close = weakref.finalize(self, _end, thread, self._stop, patience_seconds)
        thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self.next_within(None)

    def next_within(self, seconds: float | None) -> T:
        """Return the next item; raises TimeoutError where it does not come in time, StopIteration after the last."""
        if self._stop.is_set():
            raise StopIteration
        try:
            item, error = self._ready.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            self._stop.set()
            raise error
        return item


def _make(items: Iterable[T], ready: "queue.Queue[Any]", stop: threading.Event) -> None:
    """Make items until told to stop; knows no Prefetch, lest it keep one alive."""

    def hand_over(item: T | None, error: Exception | None) -> bool:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    try:
        for item in items:
            if not hand_over(item, None):
                return
        hand_over(None, StopIteration())
    except Exception as error:
        hand_over(None, error)


def _end(thread: threading.Thread, stop: threading.Event, patience_seconds: float | None) -> None:
    stop.set()
    if thread is not threading.current_thread():  # the garbage collector runs in any
        thread.join(patience_seconds)
