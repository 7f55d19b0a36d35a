"""Shards, written and read: a tar of records, and a sidecar that says what each record must be.

The sidecar is a structured npy array, a row a record: the source image's number and name, the label, and the xxh3-64
digest of each mirror's moments. Shards are written whole or not at all.
"""

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from dit_scale.data.manifest import ShardEntry
from dit_scale.data.record import END_OF_SHARD, RecordLayout, key_of
from dit_scale.data.statistics import LatentSums, no_latents
from dit_scale.errors import InputError
from dit_scale.files import atomic_write, sha256_file

WAY_OUT = "delete it and run dit-scale encode again, which makes it anew"


@dataclass(frozen=True)
class Record:
    """One image's record, about to be written."""

    source_index: int
    source_name: str
    label: int
    moments: np.ndarray
    """fp16 [M, 2C, h, w]."""


def shard_name(number: int) -> str:
    """Return a shard's file name without its ending."""
    return f"shard-{number:06d}"


def write_shard(
    folder: Path, name: str, layout: RecordLayout, records: Iterable[Record]
) -> tuple[ShardEntry, LatentSums]:
    """Write a shard and its sidecar; return what the manifest says of it and the sums over its latents."""
    channels, height, width = layout.moments_shape
    sums = no_latents(channels // 2, height * width)
    rows = []
    tar_path = folder / f"{name}.tar"
    with atomic_write(tar_path) as file:
        tar = _Hashing(file)
        for record in records:
            tar.write(layout.pack(key_of(record.source_index), record.moments, record.label))
            digests = [xxh3_64_intdigest(np.ascontiguousarray(mirror).data) for mirror in record.moments]
            rows.append((record.source_index, record.label, digests, record.source_name.encode()))
            sums += LatentSums.of(record.moments)
        tar.write(END_OF_SHARD)
    sidecar = _Hashing(io.BytesIO())
    np.save(sidecar, np.array(rows, _sidecar_dtype(layout.mirrors, rows)), allow_pickle=False)
    entry = ShardEntry(name, len(rows), layout.shard_bytes(len(rows)), tar.hexdigest(), sidecar.hexdigest())
    with atomic_write(folder / entry.sidecar_name) as file:
        file.write(sidecar.file.getvalue())
    return entry, sums


class Shard:
    """A shard open for reading; its size and its sidecar are those of the manifest."""

    def __init__(self, folder: Path, entry: ShardEntry, layout: RecordLayout):
        self.path = folder / entry.tar_name
        self.rows = _read_sidecar(folder / entry.sidecar_name, entry)
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise InputError(f"shard '{self.path}' is missing; run dit-scale encode again, which makes it") from error
        size = os.fstat(self.descriptor).st_size
        if size != entry.bytes:
            self.close()
            raise InputError(f"shard '{self.path}' has {size} bytes, its manifest says {entry.bytes}; {WAY_OUT}")

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def damage_of(folder: Path, entry: ShardEntry) -> str | None:
    """Return how a shard differs from its manifest, reading all of it, or None."""
    for name, sha256 in ((entry.tar_name, entry.sha256), (entry.sidecar_name, entry.sidecar_sha256)):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := sha256_file(folder / name)) != sha256:
            return f"{name} has SHA-256 {found[:12]}, its manifest says {sha256[:12]}"
    return None


def _sidecar_dtype(mirrors: int, rows: list[tuple[Any, ...]]) -> np.dtype[Any]:
    longest_name = max((len(row[-1]) for row in rows), default=1)
    return np.dtype(
        [("source_index", "<i8"), ("label", "<i8"), ("digest", "<u8", (mirrors,)), ("name", f"S{longest_name}")]
    )


def _read_sidecar(path: Path, entry: ShardEntry) -> npt.NDArray[Any]:
    if not path.is_file():
        raise InputError(f"sidecar '{path}' is missing; delete {entry.tar_name}, too, and run dit-scale encode again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.sidecar_sha256:
        raise InputError(f"sidecar '{path}' is not the one that its manifest tells of; {WAY_OUT}")
    return np.load(io.BytesIO(content), allow_pickle=False)


class _Hashing:
    """A file to write to that keeps the SHA-256 of all that went through."""

    def __init__(self, file: IO[bytes]):
        self.file: Any = file
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        return self.file.write(content)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
