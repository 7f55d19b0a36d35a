"""From decoded images to moments: batches of one size that never reach over a shard's end, one always under way."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dit_scale.autoencoder import Autoencoder, from_uint8
from dit_scale.data.shards import Record
from dit_scale.errors import InputError
from preprocessing.conditions import Arrays, ReadBeside
from preprocessing.decoding import Decoded
from preprocessing.job import Job, Rejection

Result = Record | Rejection


@dataclass(frozen=True)
class _Batch:
    """Images of a shard whose moments are on their way, or one that has none."""

    indices: list[int]
    stored: Tensor | None
    """fp16 on the host, [N, M, 2C, h, w]; whole once ``copied`` has happened."""
    pixels: Sequence[np.ndarray] = ()
    """The images, uint8 [S, S, 3]."""
    arrays: Sequence[Callable[[], Arrays]] = ()
    """What waits for the arrays that a condition needs of each."""
    copied: torch.cuda.Event | None = None
    reason: str = ""
    """Why there is none."""


class Encoder:
    """Turns a source's images into records, in the same batches whoever does it."""

    def __init__(self, job: Job, autoencoder: Autoencoder, device: str):
        self._job, self._autoencoder, self._device = job, autoencoder, device
        self._beside = ReadBeside(job.source, job.layout.arrays)

    def close(self) -> None:
        """Read no more arrays beside images."""
        self._beside.close()

    def results(self, shards: Iterable[int], images: Iterator[Decoded]) -> Iterator[Result]:
        """Yield a record or a rejection for each image of each shard; shards come one after another."""
        torch.set_num_threads(1)  # holds for the thread that asks only, and this may be another one
        under_way: deque[_Batch] = deque()
        for number in shards:
            for batch in self._batches(number, images):
                under_way.append(batch)
                if len(under_way) > 1:  # the next one keeps the device busy while this one is fetched
                    yield from self._collect(under_way.popleft())
        for batch in under_way:
            yield from self._collect(batch)

    def _batches(self, number: int, images: Iterator[Decoded]) -> Iterator[_Batch]:
        indices: list[int] = []
        pixels: list[np.ndarray] = []
        for index in self._job.images_of(number):
            image = next(images)
            if isinstance(image, str):
                yield _Batch([index], None, reason=image)
                continue
            indices.append(index)
            pixels.append(image)
            if len(pixels) == self._job.config.batch_size:
                yield self._launch(indices, pixels)
                indices, pixels = [], []
        if pixels:
            yield self._launch(indices, pixels)

    def _launch(self, indices: list[int], pixels: list[np.ndarray]) -> _Batch:
        """Encode a batch and its mirror images; a batch that is not full is filled up with its last image."""
        arrays = self._beside.ahead(indices)
        on_gpu = self._device.startswith("cuda")
        full = np.stack(pixels + [pixels[-1]] * (self._job.config.batch_size - len(pixels)))
        host = torch.from_numpy(full).movedim(-1, 1)  # [B, 3, S, S], channels last in memory
        images = from_uint8((host.pin_memory() if on_gpu else host.contiguous()).to(self._device, non_blocking=True))
        mirrors = [images, images.flip(-1)][: self._job.mirrors]
        moments = torch.stack([self._autoencoder.encode(mirror) for mirror in mirrors], dim=1).half()
        stored = torch.empty(moments.shape, dtype=moments.dtype, pin_memory=on_gpu)
        stored.copy_(moments, non_blocking=True)
        if not on_gpu:
            return _Batch(indices, stored, pixels, arrays)
        copied = torch.cuda.Event()
        copied.record()
        return _Batch(indices, stored, pixels, arrays, copied)

    def _collect(self, batch: _Batch) -> Iterator[Result]:
        source = self._job.source
        if batch.stored is None:
            yield Rejection(batch.indices[0], source.name(batch.indices[0]), batch.reason)
            return
        if batch.copied is not None:
            batch.copied.synchronize()
        rows = zip(batch.indices, batch.stored.numpy(), batch.pixels, batch.arrays, strict=False)
        for index, moments, image, arrays in rows:
            if not np.isfinite(moments).all():
                raise InputError(
                    f"the moments of image '{source.name(index)}' do not fit half precision; give another autoencoder, "
                    f"or autoencoder.precision=fp32"
                )
            crop = np.ascontiguousarray(image.transpose(2, 0, 1)) if self._job.config.keep_crops else None  # [3, S, S]
            yield Record(index, source.name(index), source.label(index), moments, arrays(), crop)
