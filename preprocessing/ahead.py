"""An iterator run ahead of its consumer by a thread, so that both work at once."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Yield the items, up to ``depth`` of them made before they are asked for; what fails in making fails here.

    Closing the generator ends the thread before it returns.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(target=_make, args=(items, ready, stop), name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                if isinstance(error, StopIteration):
                    return
                raise error
            yield item
    finally:
        stop.set()
        thread.join()


def _make(items: Iterable[T], ready: "queue.Queue[Any]", stop: threading.Event) -> None:
    def hand_over(item: T | None, error: BaseException | None) -> bool:
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
