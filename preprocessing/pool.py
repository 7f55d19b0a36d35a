"""Processes that do one thing for this one, each over a pipe of its own.

The processes of ProcessPoolExecutor share a pipe. Where one is killed while it writes to it, the rest of its answer is
awaited for ever. A pipe that one process alone holds ends with that process.
"""

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

from dit_scale.distributed.runtime import die_with_parent

T = TypeVar("T")


class ProcessDied(Exception):
    """A process ended, or was killed, before it had answered."""


class ProcessPool(Generic[T]):
    """``count`` processes that call ``work``; a thread for each asks it and waits for its answer."""

    def __init__(self, count: int, work: Callable[..., T]):
        self._work = work
        self._processes: list[BaseProcess] = []
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        self._threads = ThreadPoolExecutor(count)
        try:
            for _ in range(count):  # here and now: a process dies with the thread that started it
                self._start()
        except BaseException:
            self.close()
            raise

    def submit(self, *arguments: Any) -> Future[T]:
        """Have some process call ``work``; the result is ProcessDied where that process ends first."""
        return self._threads.submit(self._ask, arguments)

    def close(self) -> None:
        """End the processes, whatever they are at."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)  # those that wait for an answer see the end of their pipe
        for process in self._processes:
            process.join()
        while not self._idle.empty():
            self._idle.get().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads and GPU handles into the children
        ours, theirs = context.Pipe()
        self._idle.put(ours)
        with theirs:  # closed here, so that the process alone holds this end
            process = context.Process(target=_serve, args=(theirs, self._work), daemon=True)
            process.start()
        self._processes.append(process)

    def _ask(self, arguments: tuple[Any, ...]) -> T:
        pipe = self._idle.get()
        try:
            pipe.send(arguments)
            result, error = pipe.recv()
        except (EOFError, OSError) as gone:
            raise ProcessDied from gone
        finally:
            self._idle.put(pipe)
        if error is not None:
            raise error
        return result


def _serve(pipe: Connection, work: Callable[..., Any]) -> None:
    die_with_parent()
    while True:
        answer = _answer(work, pipe.recv())
        try:
            pipe.send(answer)
        except (pickle.PicklingError, AttributeError, TypeError):  # one of a class that pickle does not know
            pipe.send((None, RuntimeError(f"{answer[1]!r}")))


def _answer(work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return work(*arguments), None
    except Exception as error:
        error.add_note(traceback.format_exc())  # which pickling would drop
        return None, error
