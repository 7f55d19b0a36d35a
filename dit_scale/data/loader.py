"""The loader: from a place in the stream to batches; its whole state is one number, the images consumed."""

import queue
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.order import indices_at
from dit_scale.draws import Stream
from dit_scale.errors import InputError

__all__ = ["Batch", "LatentDataset", "Loader"]


class Batch(NamedTuple):
    """One rank's part of a step; its memory is its own and stays valid."""

    positions: Tensor
    """Places in the stream, int64 [n]: what the draws of these images depend on."""
    moments: Tensor
    """fp16 as stored, [n, 2C, h, w]."""
    labels: Tensor
    """int64 [n]."""
    keys: list[str]


@dataclass(frozen=True)
class _Part:
    """Which part of the stream a rank reads, and how."""

    dataset: LatentDataset
    seed: int
    global_batch_size: int
    batch_size: int
    first: int
    mirror: bool
    verify: bool
    pin_memory: bool

    def batch(self, step: int) -> Batch:
        """Read this rank's batch, ``step`` steps after the start."""
        begin = self.first + step * self.global_batch_size
        positions = torch.arange(begin, begin + self.batch_size)
        indices = indices_at(self.seed, positions.numpy(), len(self.dataset))
        mirrored = np.zeros(self.batch_size, bool)
        if self.mirror:
            mirrored = (draws.uniform(self.seed, Stream.MIRROR, positions) < 0.5).numpy()
        # A new tensor each time: pinned memory that a copy to the GPU still reads must not be written over, and
        # torch's allocator knows when that copy is done.
        moments, labels = self.dataset.read(indices, mirrored, verify=self.verify, pin_memory=self.pin_memory)
        return Batch(positions, moments, labels, self.dataset.keys(indices))


class Loader:
    """Yields, without end, this rank's part of each step: positions ``[p + r G/W, p + (r + 1) G/W)``.

    Nothing is dropped, padded or repeated; a batch may straddle epochs. A thread reads ahead; what it has read but
    nobody asked for is not consumed.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        *,
        seed: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        mirror: bool = True,
        verify: bool = True,
        prefetch_batches: int = 4,
        pin_memory: bool = False,
        patience_seconds: float = 600.0,
    ):
        if global_batch_size % world_size:
            raise InputError(
                f"global_batch_size={global_batch_size} is not divisible by {world_size} ranks; give a multiple"
            )
        size = global_batch_size // world_size
        mirror = mirror and dataset.manifest.mirrors == 2
        part = _Part(dataset, seed, global_batch_size, size, start + rank * size, mirror, verify, pin_memory)
        self._patience_seconds = patience_seconds
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(maxsize=prefetch_batches)
        self._stop = threading.Event()
        # A daemon, so that a read which never returns cannot hold up the interpreter's exit.
        thread = threading.Thread(
            target=_produce, args=(part, self._ready, self._stop), name="latent-loader", daemon=True
        )
        # Also when nobody holds the loader any more, and at exit: torch aborts where a thread is still inside it.
        self._end = weakref.finalize(self, _end, thread, self._stop)
        thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; raises what went wrong in reading it."""
        if self._stop.is_set():
            raise StopIteration
        try:
            batch = self._ready.get(timeout=self._patience_seconds)
        except queue.Empty:
            raise TimeoutError(
                f"no batch within {self._patience_seconds:g} s: reading the shards has stalled; look to their storage"
            ) from None
        if isinstance(batch, Exception):
            self._stop.set()
            raise batch
        return batch

    def close(self) -> None:
        """End the thread, waiting a little for a read under way."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _produce(part: _Part, ready: "queue.Queue[Batch | Exception]", stop: threading.Event) -> None:
    """Read batches ahead until told to stop; knows no Loader, lest it keep one alive."""
    step = 0
    while not stop.is_set():
        item: Batch | Exception
        try:
            item = part.batch(step)
        except Exception as error:
            item = error
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if isinstance(item, Exception):
            return
        step += 1


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    if thread is not threading.current_thread():  # the garbage collector runs in any
        thread.join(timeout=5.0)
