"""Latents at random: any records of a shard folder, each checked as it is read."""

import os
import resource
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from dit_scale.data.manifest import Manifest, read_manifest
from dit_scale.data.record import key_of
from dit_scale.data.shards import WAY_OUT, Shard
from dit_scale.errors import InputError

Integers = npt.NDArray[np.int64]


class LatentDataset:
    """The records of a shard folder, numbered from 0 in the order of the shards."""

    def __init__(self, manifest: Manifest, shards: list[Shard]):
        self.manifest = manifest
        self._shards = shards
        rows = [shard.rows for shard in shards]
        self._labels = np.concatenate([row["label"] for row in rows])
        self._source_indices = np.concatenate([row["source_index"] for row in rows])
        self._digests = np.concatenate([row["digest"] for row in rows])  # [N, M]
        self._ends = np.cumsum([len(row) for row in rows])
        for shard in shards:
            del shard.rows  # names and all; what reading needs is in the arrays above

    @classmethod
    def open(cls, path: str | Path) -> "LatentDataset":
        """Open a shard folder; raises InputError for a folder or a shard that is not what its manifest says."""
        folder = Path(path)
        manifest = read_manifest(folder)
        if manifest.num_records == 0:
            raise InputError(f"'{folder}' holds no record; encode at least one image")
        _allow_open_files(len(manifest.shards))
        return cls(manifest, [Shard(folder, entry, manifest.layout) for entry in manifest.shards])

    def __len__(self) -> int:
        return len(self._labels)

    def keys(self, indices: Integers) -> list[str]:
        """Return the keys of records."""
        return [key_of(source_index) for source_index in self._source_indices[indices].tolist()]

    def read(
        self, indices: Integers, mirrored: npt.NDArray[np.bool_], *, verify: bool = True, pin_memory: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return moments [n, 2C, h, w], fp16 as stored, and labels [n] of records, or of their mirror images.

        Only the mirror that is asked for is read, straight into the tensor's memory.
        """
        layout = self.manifest.layout
        mirrors = mirrored.astype(np.int64)
        shard_numbers = np.searchsorted(self._ends, indices, side="right")
        first_records = np.concatenate(([0], self._ends))[shard_numbers]
        offsets = layout.offsets(indices - first_records, mirrors)
        digests = self._digests[indices, mirrors]
        moments = torch.empty((len(indices), *layout.moments_shape), dtype=torch.float16, pin_memory=pin_memory)
        buffers = moments.numpy().reshape(len(indices), -1).view(np.uint8)
        places = zip(buffers, shard_numbers.tolist(), offsets.tolist(), digests.tolist(), strict=True)
        for i, (buffer, number, offset, digest) in enumerate(places):
            if os.preadv(self._shards[number].descriptor, [buffer], offset) != layout.mirror_bytes:
                raise self._damaged(number, indices[i], "ends early")
            if verify and xxh3_64_intdigest(buffer) != digest:
                raise self._damaged(number, indices[i], "does not have the digest that was taken when it was written")
        return moments, torch.from_numpy(self._labels[indices])

    def close(self) -> None:
        """Close the shards."""
        for shard in self._shards:
            shard.close()
        self._shards = []

    def _damaged(self, shard_number: int, index: np.int64, how: str) -> InputError:
        key = key_of(int(self._source_indices[index]))
        return InputError(f"record {key} of shard '{self._shards[shard_number].path}' {how}; {WAY_OUT}")


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files where a dataset has more shards than it allows."""
    spare = 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + spare:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + spare, hard), hard))
