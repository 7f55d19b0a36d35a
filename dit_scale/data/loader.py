"""The loader: from a place in the stream to batches; its whole state is one number, the images consumed."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from dit_scale import draws
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.order import Order, Window
from dit_scale.data.shards import WAY_OUT
from dit_scale.draws import Stream
from dit_scale.errors import Failure, InputError
from dit_scale.prefetch import Prefetch

__all__ = ["Batch", "LatentDataset", "Loader", "Reading", "Window"]

_LAST_READ_SECONDS = 5.0
"""How long closing waits for a read under way."""


class Batch(NamedTuple):
    """One rank's part of a step; its memory is its own and stays valid."""

    positions: Tensor
    """Places in the stream, int64 [n]: what the draws of these images depend on."""
    moments: Tensor
    """fp16 as stored, [n, 2C, h, w]."""
    conditions: Tensor
    """Labels, int64 [n], or whatever else the model's condition is stored as, [n, ...]."""
    keys: list[str]
    damaged: dict[int, str]
    """Records set aside: their place in the batch, and how they are damaged. Their moments are zero."""
    crops: Tensor | None = None
    """The images that became the moments, mirrored as these, uint8 [n, 3, S, S]; None where nobody asked for them."""


@dataclass(frozen=True)
class Reading:
    """How records are read."""

    mirror: bool = True
    """Take mirror images (horizontal flips) of half of them."""
    verify: bool = True
    on_damage: Literal["stop", "set_aside"] = "stop"
    prefetch_batches: int = 4
    """Batches that are ready before they are asked for."""
    request_batches: int = 64
    """How many batches ahead of reading shards are fetched from object storage."""
    patience_seconds: float = 600.0
    """How long a batch may take."""


@dataclass(frozen=True)
class _Part:
    """Which part of the stream a rank reads, and how."""

    dataset: LatentDataset
    order: Order
    seed: int
    global_batch_size: int
    batch_size: int
    first: int
    settings: Reading
    pin_memory: bool

    def positions(self, step: int) -> Tensor:
        """Return this rank's part of the stream, ``step`` steps after the start."""
        begin = self.first + step * self.global_batch_size
        return torch.arange(begin, begin + self.batch_size)

    def batches(self) -> Iterator[Batch]:
        """Read this rank's batch of each step, without end."""
        return map(self.batch, itertools.count())

    def batch(self, step: int) -> Batch:
        """Read this rank's batch of a step."""
        self._request(step)
        positions = self.positions(step)
        records = self.dataset.records_at(self.order, positions.numpy())
        mirrored = np.zeros(self.batch_size, bool)
        if self.settings.mirror and self.dataset.mirrors == 2:
            mirrored = (draws.uniform(self.seed, Stream.MIRROR, positions) < 0.5).numpy()
        # A new tensor each time: pinned memory that a copy to the GPU still reads must not be written over, and
        # torch's allocator knows when that copy is done.
        moments, conditions, damaged = self.dataset.read_all(
            records, mirrored, verify=self.settings.verify, pin_memory=self.pin_memory
        )
        crops = None
        if self.dataset.with_crops:
            crops, more = self.dataset.read_crops(
                records, mirrored, verify=self.settings.verify, pin_memory=self.pin_memory
            )
            damaged = more | damaged
            for place in damaged:  # a record is whole or set aside
                moments[place], crops[place] = 0, 0
        if damaged and self.settings.on_damage == "stop":
            raise InputError(f"{damaged[min(damaged)]}; {WAY_OUT}, or give data.on_damage=set_aside")
        return Batch(positions, moments, conditions, self.dataset.keys(records), damaged, crops)

    def _request(self, step: int) -> None:
        """Have what is read some batches later fetched meanwhile."""
        if self.dataset.is_local:
            return
        ahead = self.settings.request_batches
        for later in range(step + ahead, step + ahead + 1) if step else range(ahead + 1):
            self.dataset.request(self.dataset.records_at(self.order, self.positions(later).numpy()))


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
        window: Window | None = None,
        reading: Reading | None = None,
        pin_memory: bool = False,
    ):
        if global_batch_size % world_size:
            raise InputError(
                f"train.global_batch_size={global_batch_size} is not divisible by {world_size} ranks; give a multiple"
            )
        reading = reading or Reading()
        size = global_batch_size // world_size
        order = dataset.order(seed, window)
        part = _Part(dataset, order, seed, global_batch_size, size, start + rank * size, reading, pin_memory)
        self._patience_seconds = reading.patience_seconds
        self._batches = Prefetch(part.batches(), reading.prefetch_batches, "latent-loader", _LAST_READ_SECONDS)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; raises what went wrong in reading it."""
        try:
            return self._batches.next_within(self._patience_seconds)
        except TimeoutError:
            raise Failure(
                f"no batch within {self._patience_seconds:g} s: reading the shards has stalled; look to their storage, "
                f"or give data.patience_seconds more"
            ) from None

    def close(self) -> None:
        """End the thread, waiting a little for a read under way."""
        self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
