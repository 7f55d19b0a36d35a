"""One shard folder open for reading: any of its records at random, each checked as it is read."""

import hashlib
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from xxhash import xxh3_64_intdigest

from dit_scale.data.manifest import Manifest, manifest_in
from dit_scale.data.opening import open_storage
from dit_scale.data.record import key_of
from dit_scale.data.shards import WAY_OUT, Rows, read_sidecar
from dit_scale.data.storage import UNKNOWN_BYTES, File, Storage
from dit_scale.draws import mix64
from dit_scale.errors import InputError
from dit_scale.latents import NO_VARIANCE_LOG_VARIANCE

Integers = npt.NDArray[np.int64]


class ShardFolder:
    """The records of a shard folder, numbered from 0 in the order of the shards."""

    def __init__(self, storage: Storage, manifest: Manifest, rows: list[Rows]):
        self.storage, self.manifest = storage, manifest
        self.labels: Integers = _column(rows, "label")
        self._digests = _column(rows, "digest")  # [N, M]
        self._ends = np.cumsum([len(row) for row in rows])
        self._files = [File(shard.file, shard.bytes) for shard in manifest.shards]
        self._offsets = _column(rows, "offset") if manifest.container != "tar" else None
        # Keys are numbers of source images, or text where others chose them.
        self._keys = _column(rows, "key" if manifest.container == "foreign" else "source_index")
        self._mirror_bytes = manifest.stored.num_bytes(manifest.latents)

    @classmethod
    def open(
        cls,
        path: str | Path,
        cache: Path | None = None,
        cache_bytes: int | None = None,
        patience_seconds: float = 600.0,
    ) -> "ShardFolder":
        """Open a shard folder here or in object storage.

        Raises InputError for a folder or a shard that is not what its manifest says.
        """
        storage = open_storage(path, cache=cache, cache_bytes=cache_bytes, patience_seconds=patience_seconds)
        try:
            manifest = manifest_in(storage)
            if manifest.num_records == 0:
                raise InputError(f"'{path}' holds no record; encode at least one image")
            _allow_open_files(len(manifest.shards))
            storage.request([File(shard.sidecar, UNKNOWN_BYTES) for shard in manifest.shards])
            rows = []
            for shard in manifest.shards:
                rows.append(read_sidecar(storage, shard))
                if fault := storage.check(File(shard.file, shard.bytes)):
                    raise InputError(f"shard '{storage.location}/{shard.file}' {fault}; {WAY_OUT}")
            return cls(storage, manifest, rows)
        except BaseException:
            storage.close()
            raise

    def __len__(self) -> int:
        return len(self.labels)

    def keys(self, indices: Integers) -> list[str]:
        """Return the keys of records."""
        keys = self._keys[indices].tolist()
        return [key.decode() for key in keys] if self.manifest.container == "foreign" else [key_of(key) for key in keys]

    def key_hashes(self) -> Integers:
        """Return a 64-bit hash of every record's key, int64 [N]; it depends on the key alone."""
        if self.manifest.container == "foreign":
            hashes = np.array([xxh3_64_intdigest(key) for key in self._keys.tolist()], np.uint64)
            return hashes.view(np.int64)
        return mix64(torch.from_numpy(self._keys)).numpy()

    def content_digest(self) -> bytes:
        """Return the SHA-256 of keys and digests of all records, which does not depend on how they are stored."""
        return hashlib.sha256(self._keys.tobytes() + self._digests.tobytes()).digest()

    def read(
        self, indices: Integers, mirrors: Integers, buffers: npt.NDArray[np.uint8], verify: bool
    ) -> dict[int, str]:
        """Read one mirror of each record into the rows of ``buffers`` [n, bytes]; return how rows are damaged.

        Only the mirror that is asked for is read.
        """
        damaged: dict[int, str] = {}
        shards, offsets = self._places(indices, mirrors)
        digests = self._digests[indices, mirrors].tolist()
        for i, (buffer, shard, offset, digest) in enumerate(zip(buffers, shards, offsets, digests, strict=True)):
            if (how := self._read_one(self._files[shard], buffer, offset, digest if verify else None)) is None:
                continue
            if self.storage.forget(self._files[shard]):  # the copy here may be at fault
                how = self._read_one(self._files[shard], buffer, offset, digest if verify else None)
            if how is not None:
                damaged[i] = f"record {self.keys(indices[i : i + 1])[0]} of shard '{self._path(shard)}' {how}"
        return damaged

    def request(self, indices: Integers) -> None:
        """Say which records will be read soon, so that shards elsewhere are fetched meanwhile."""
        shards = np.unique(np.searchsorted(self._ends, indices, side="right"))
        self.storage.request([self._files[shard] for shard in shards.tolist()])

    def moments(self, buffers: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return the moments [n, 2C, h, w] that rows of bytes hold: as stored, or fp32 where that is not moments."""
        stored, latents = self.manifest.stored, self.manifest.latents
        values = torch.from_numpy(buffers.view(np.dtype(stored.dtype)).reshape(-1, *stored.shape(latents)))
        if self.holds_moments:
            return values
        if stored.has_variance:
            return values.float()
        mean = values.float() / stored.scale
        return torch.cat((mean, torch.full_like(mean, NO_VARIANCE_LOG_VARIANCE)), dim=1)

    @property
    def holds_moments(self) -> bool:
        """Whether rows of bytes are fp16 moments, as our own shards hold."""
        stored = self.manifest.stored
        return stored.has_variance and stored.dtype == "float16"

    def row_bytes(self) -> int:
        """Bytes of one mirror of a record, as stored."""
        return self._mirror_bytes

    def _places(self, indices: Integers, mirrors: Integers) -> tuple[list[int], list[int]]:
        """Return each record's shard and where in it the mirror begins."""
        shards = np.searchsorted(self._ends, indices, side="right")
        if self._offsets is not None:
            return shards.tolist(), (self._offsets[indices] + mirrors * self._mirror_bytes).tolist()
        first_records = np.concatenate(([0], self._ends))[shards]
        return shards.tolist(), self.manifest.layout.offsets(indices - first_records, mirrors).tolist()

    def _read_one(self, file: File, buffer: npt.NDArray[np.uint8], offset: int, digest: int | None) -> str | None:
        """Read one mirror; return how it is damaged, or None."""
        if self.storage.pread(file, buffer, offset) != len(buffer):
            return "ends early"
        if digest is not None and xxh3_64_intdigest(buffer.data) != digest:
            return "does not have the digest that was taken when it was written"
        return None

    def _path(self, shard: int) -> str:
        return f"{self.storage.location}/{self._files[shard].name}"

    def close(self) -> None:
        """Close the shards."""
        self.storage.close()


def _column(rows: list[Rows], name: str) -> npt.NDArray[Any]:
    return np.concatenate([row[name] for row in rows])


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files where a folder has more shards than it allows."""
    spare = 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + count + spare  # noqa: PTH208 (names alone)
    if soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
