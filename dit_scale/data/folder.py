"""One shard folder open for reading: any of its records at random, each checked as it is read."""

import hashlib
import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from xxhash import xxh3_64_intdigest

from dit_scale.conditioning import RecordArray
from dit_scale.data.manifest import Manifest, manifest_in
from dit_scale.data.opening import open_storage
from dit_scale.data.record import CropLayout, key_of
from dit_scale.data.shards import CROP_DIGEST, WAY_OUT, Rows, digest_column, offset_column, read_sidecar
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
        self._firsts = np.concatenate(([0], self._ends))
        self._files = [File(shard.file, shard.bytes) for shard in manifest.shards]
        names = [array.name for array in manifest.arrays]
        self._array_digests = {name: _column(rows, digest_column(name)) for name in names}
        self._offsets = _column(rows, "offset") if manifest.container != "tar" else None
        self._array_offsets = {
            name: _column(rows, offset_column(name)) for name in names if manifest.container != "tar"
        }
        # Keys are numbers of source images, or text where others chose them.
        self._keys = _column(rows, "key" if manifest.container == "foreign" else "source_index")
        self._mirror_bytes = manifest.stored.num_bytes(manifest.latents)
        self._crop_layout, self._crop_files = manifest.crops, manifest.crop_files(*manifest.shards)
        self._crop_digests = _column(rows, CROP_DIGEST) if self._crop_files else np.empty(0, np.uint64)

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

    def array_digest(self, name: str) -> bytes:
        """Return the SHA-256 of the digests of an array of all records."""
        return hashlib.sha256(self._array_digests[name].tobytes()).digest()

    def check_holds(self, array: RecordArray) -> None:
        """Raise InputError where records do not hold an array of this name, type and shape."""
        if array in self.manifest.arrays:
            return
        held = ", ".join(f"'{it.name}' ({it.dtype} {list(it.shape)})" for it in self.manifest.arrays) or "labels alone"
        raise InputError(
            f"records of '{self.storage.location}' hold {held}, and the condition reads '{array.name}' ({array.dtype} "
            f"{list(array.shape)}); give shards that hold it, or another model.condition"
        )

    @property
    def crops(self) -> CropLayout:
        """Layout of the crops; raises InputError where none are kept."""
        if self._crop_layout is None:
            raise InputError(
                f"'{self.storage.location}' holds no crops, the images that became its latents; encode again with "
                f"keep_crops=true and another output, and give that folder"
            )
        return self._crop_layout

    def prepare_crops(self) -> None:
        """Look to the files of crops before they are read; raises InputError where one is not there or not whole."""
        if self.crops:
            _allow_open_files(2 * len(self._files))
        for file in self._crop_files:
            if fault := self.storage.check(file):
                raise InputError(f"file of crops '{self.storage.location}/{file.name}' {fault}; {WAY_OUT}")

    def crops_digest(self) -> bytes:
        """Return the SHA-256 of the digests of all crops."""
        return hashlib.sha256(self._crop_digests.tobytes()).digest()

    def read(
        self, indices: Integers, mirrors: Integers, buffers: npt.NDArray[np.uint8], verify: bool
    ) -> dict[int, str]:
        """Read one mirror of each record into the rows of ``buffers`` [n, bytes]; return how rows are damaged.

        Only the mirror that is asked for is read.
        """
        shards = self._shards_of(indices)
        if self._offsets is not None:
            offsets = self._offsets[indices] + mirrors * self._mirror_bytes
        else:
            offsets = self.manifest.layout.offsets(indices - self._firsts[shards], mirrors)
        return self._read(self._files, indices, shards, offsets, self._digests[indices, mirrors], buffers, verify)

    def read_array(self, name: str, indices: Integers, buffers: npt.NDArray[np.uint8], verify: bool) -> dict[int, str]:
        """Read an array of each record into the rows of ``buffers`` [n, bytes]; return how rows are damaged."""
        shards = self._shards_of(indices)
        if name in self._array_offsets:
            offsets = self._array_offsets[name][indices]
        else:
            offsets = self.manifest.layout.array_offsets(name, indices - self._firsts[shards])
        return self._read(self._files, indices, shards, offsets, self._array_digests[name][indices], buffers, verify)

    def read_crops(self, indices: Integers, buffers: Iterable[npt.NDArray[np.uint8]], verify: bool) -> dict[int, str]:
        """Read the crop of each record into a buffer [bytes] of its own; return how crops are damaged."""
        shards = self._shards_of(indices)
        offsets, digests = self.crops.offsets(indices - self._firsts[shards]), self._crop_digests[indices]
        return self._read(self._crop_files, indices, shards, offsets, digests, buffers, verify)

    def _read(
        self,
        files: list[File],
        indices: Integers,
        shards: Integers,
        offsets: Integers,
        digests: npt.NDArray[np.uint64],
        buffers: Iterable[npt.NDArray[np.uint8]],
        verify: bool,
    ) -> dict[int, str]:
        damaged: dict[int, str] = {}
        rows = zip(buffers, shards.tolist(), offsets.tolist(), digests.tolist(), strict=True)
        for i, (buffer, shard, offset, digest) in enumerate(rows):
            file = files[shard]
            if (how := self._read_one(file, buffer, offset, digest if verify else None)) is None:
                continue
            if self.storage.forget(file):  # the copy here may be at fault
                how = self._read_one(file, buffer, offset, digest if verify else None)
            if how is not None:
                path = f"{self.storage.location}/{file.name}"
                damaged[i] = f"record {self.keys(indices[i : i + 1])[0]} of shard '{path}' {how}"
        return damaged

    def request(self, indices: Integers, with_crops: bool = False) -> None:
        """Say which records will be read soon, so that shards elsewhere are fetched meanwhile."""
        shards = np.unique(self._shards_of(indices)).tolist()
        kinds = (self._files, self._crop_files) if with_crops else (self._files,)
        self.storage.request([files[shard] for shard in shards for files in kinds])

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

    def _shards_of(self, indices: Integers) -> Integers:
        return np.searchsorted(self._ends, indices, side="right")

    def _read_one(self, file: File, buffer: npt.NDArray[np.uint8], offset: int, digest: int | None) -> str | None:
        """Read one mirror; return how it is damaged, or None."""
        if self.storage.pread(file, buffer, offset) != len(buffer):
            return "ends early"
        if digest is not None and xxh3_64_intdigest(buffer.data) != digest:
            return "does not have the digest that was taken when it was written"
        return None

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
