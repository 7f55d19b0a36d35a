"""Files fetched ahead of whoever reads them, by threads."""

import queue
import threading
from collections.abc import Callable, Sequence

from dit_scale.data.storage import File

_THREADS = 4


class Ahead:
    """Files requested and not yet read, and the threads that fetch them."""

    def __init__(self, fetch: Callable[[File], None]):
        self._fetch = fetch
        self._queue: queue.SimpleQueue[File | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._requests = 0
        self._wanted: dict[str, int] = {}
        """Names, and the number of the request that has them."""

    def request(self, files: Sequence[File]) -> None:
        """Queue files, less those that are queued or here and unread."""
        with self._lock:
            self._requests += 1
            for file in files:
                if file.name not in self._wanted:
                    self._queue.put(file)
                self._wanted[file.name] = self._requests
            # Daemons, so that a download which never returns cannot hold up the interpreter's exit.
            while files and len(self._threads) < _THREADS:
                self._threads.append(threading.Thread(target=self._work, name="fetch-ahead", daemon=True))
                self._threads[-1].start()

    def begin_reading(self, name: str) -> None:
        """Note that a file is read now; requests before the last one are past, whether they were read or not."""
        with self._lock:
            if number := self._wanted.pop(name, 0):
                self._wanted = {other: mine for other, mine in self._wanted.items() if mine >= number - 1}

    def is_wanted(self, name: str) -> bool:
        """Return whether a file is requested and not yet read."""
        with self._lock:
            return name in self._wanted

    def names(self) -> tuple[str, ...]:
        """Return the files requested and not yet read."""
        with self._lock:
            return tuple(self._wanted)

    def close(self) -> None:
        """Tell the threads to end."""
        with self._lock:
            self._wanted = {}
            for _ in self._threads:
                self._queue.put(None)

    def _work(self) -> None:
        while file := self._queue.get():
            self._fetch(file)
