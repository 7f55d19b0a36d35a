"""The readers that are compared, each as its user would write it: batches of moments and labels, an epoch at a time.

All deliver the same tensors, moments [n, 2C, h, w] in half precision and labels [n], from one process without workers,
so that the process's CPU time is all that they cost.
"""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dit_scale.data.loader import LatentDataset, Loader, Reading
from dit_scale.data.manifest import Manifest

BATCH_SIZE = 256

Batches = Iterator[tuple[Tensor, Tensor]]


class Reader(Protocol):
    """A way of reading all records once."""

    read_bytes: float
    """Bytes read for each record."""

    def epoch(self, mirror: bool) -> Batches:
        """Yield all records once; with ``mirror``, and where both mirrors are stored, the mirror images of half."""

    def close(self) -> None:
        """Let go of files and shared memory."""


class OwnReader:
    """This project's loader: records in shuffled order, of each the mirror that is asked for.

    The few batches that its thread reads beyond the epoch's end are counted against it.
    """

    def __init__(self, shards: Path, verify: bool, with_crops: bool = False):
        self._dataset, self._verify, self._epochs = LatentDataset.open(shards, with_crops=with_crops), verify, 0
        crops = self._dataset.manifest.crops if with_crops else None
        crop_bytes = math.prod(crops.shape) if crops else 0
        self.read_bytes: float = self._dataset.manifest.layout.mirror_bytes + crop_bytes

    def epoch(self, mirror: bool) -> Batches:
        count, start = len(self._dataset), self._epochs * len(self._dataset)
        self._epochs += 1
        reading = Reading(mirror=mirror, verify=self._verify, prefetch_batches=1)
        with Loader(self._dataset, seed=0, global_batch_size=BATCH_SIZE, start=start, reading=reading) as loader:
            for first in range(0, count, BATCH_SIZE):
                batch = next(loader)
                yield batch.moments[: count - first], batch.conditions[: count - first]

    def close(self) -> None:
        self._dataset.close()


class WebDatasetReader:
    """webdataset over the same tars, in the order in which they lie, which is the least work for it."""

    def __init__(self, shards: Path, manifest: Manifest):
        import webdataset

        urls = [str(shards / shard.file) for shard in manifest.shards]
        samples = webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("npy", "cls")
        self._batches = samples.batched(BATCH_SIZE)
        self.read_bytes = _file_bytes(manifest)

    def epoch(self, mirror: bool) -> Batches:
        for moments, labels in self._batches:
            yield _one_mirror(torch.from_numpy(moments), mirror), torch.from_numpy(labels)

    def close(self) -> None:
        pass


class StreamingReader:
    """StreamingDataset and StreamingDataLoader of mosaicml-streaming over the same records as MDS, shuffled."""

    def __init__(self, mds: Path, manifest: Manifest):
        from streaming import StreamingDataLoader, StreamingDataset

        # One canonical node, as there is one reader: with more it repeats records where they do not divide evenly.
        self._dataset = StreamingDataset(local=str(mds), shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=1)
        self._loader = StreamingDataLoader(self._dataset, batch_size=BATCH_SIZE, num_workers=0)
        self.read_bytes = _file_bytes(manifest)

    def epoch(self, mirror: bool) -> Batches:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # its decoder's arrays
            for batch in self._loader:
                yield _one_mirror(batch["moments"], mirror), batch["label"]

    def close(self) -> None:
        del self._loader, self._dataset  # whose end frees the shared memory


def _one_mirror(moments: Tensor, mirror: bool) -> Tensor:
    """Take one mirror of each record: moments [n, M, 2C, h, w] -> [n, 2C, h, w]."""
    if moments.shape[1] == 1 or not mirror:
        return moments[:, 0]
    return moments[torch.arange(len(moments)), torch.randint(2, (len(moments),))]


def _file_bytes(manifest: Manifest) -> float:
    """Return the bytes of the shards for each record: these readers go through all of them."""
    return sum(shard.bytes for shard in manifest.shards) / manifest.num_records
