"""Shards, written and read: a tar of records, and a sidecar that says what each record must be.

The sidecar is a structured npy array, a row a record: the source image's number and name, the label, and the xxh3-64
digest of each mirror's moments and of each further array; for records that do not lie at a stride, also their offsets,
and for those of others their key. Shards are written whole or not at all.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from dit_scale.data.manifest import ShardEntry
from dit_scale.data.record import END_OF_SHARD, RecordLayout, key_of
from dit_scale.data.statistics import LatentSums, no_latents
from dit_scale.data.storage import UNKNOWN_BYTES, File, Storage
from dit_scale.errors import InputError
from dit_scale.files import atomic_write, sha256_file

WAY_OUT = "run dit-scale verify with --repair, or delete it and run dit-scale encode again, which makes it again"
Rows = npt.NDArray[Any]


@dataclass(frozen=True)
class Record:
    """One image's record, about to be written."""

    source_index: int
    source_name: str
    label: int
    moments: np.ndarray
    """fp16 [M, 2C, h, w]."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the layout names beside them."""


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
            tar.write(layout.pack(key_of(record.source_index), record.moments, record.label, record.arrays))
            digests = [_digest(mirror) for mirror in record.moments]
            more = [_digest(record.arrays[array.name]) for array in layout.arrays]
            rows.append((record.source_index, record.label, digests, *more, os.fsencode(record.source_name)))
            sums += LatentSums.of(record.moments)
        tar.write(END_OF_SHARD)
    sidecar_sha256 = write_sidecar(folder / f"{name}.npy", _sidecar_rows(layout, rows))
    return ShardEntry(f"{name}.tar", len(rows), layout.shard_bytes(len(rows)), tar.hexdigest(), sidecar_sha256), sums


def digest_column(name: str) -> str:
    """Return what sidecars call the digests of an array."""
    return f"{name}_digest"


def offset_column(name: str) -> str:
    """Return what sidecars call the offsets of an array, where it does not lie at a stride."""
    return f"{name}_offset"


def _digest(array: np.ndarray) -> int:
    return xxh3_64_intdigest(np.ascontiguousarray(array).data)


def _sidecar_rows(layout: RecordLayout, rows: list[tuple[Any, ...]]) -> Rows:
    """Return a sidecar's array from (source index, label, digests, digest of each array, source name) of a record."""
    longest_name = max((len(row[-1]) for row in rows), default=1)
    more = [(digest_column(array.name), "<u8") for array in layout.arrays]
    digests = ("digest", "<u8", (layout.mirrors,))
    columns = [("source_index", "<i8"), ("label", "<i8"), digests, *more, ("name", f"S{longest_name}")]
    return np.array(rows, np.dtype(columns))


def write_sidecar(path: Path, rows: Rows) -> str:
    """Write a sidecar; return its SHA-256."""
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    with atomic_write(path) as file:
        file.write(content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


def is_sidecar(path: Path) -> bool:
    """Whether a file is a sidecar, of whatever shard."""
    try:
        return "digest" in (np.load(path, mmap_mode="r", allow_pickle=False).dtype.names or ())
    except (OSError, ValueError, EOFError):
        return False


def read_sidecar(storage: Storage, entry: ShardEntry) -> Rows:
    """Return a shard's sidecar, which must be the one that the manifest names."""
    where = f"{storage.location}/{entry.sidecar}"
    while True:
        try:
            content = storage.content(entry.sidecar)
        except FileNotFoundError as error:
            raise InputError(
                f"sidecar '{where}' is missing; delete {entry.file}, too, and run dit-scale encode again"
            ) from error
        if hashlib.sha256(content).hexdigest() == entry.sidecar_sha256:
            return np.load(io.BytesIO(content), allow_pickle=False)
        if not storage.forget(File(entry.sidecar, UNKNOWN_BYTES)):  # this machine's copy may be at fault
            raise InputError(f"sidecar '{where}' is not the one that its manifest names; {WAY_OUT}")


def damage_of(folder: Path, entry: ShardEntry) -> str | None:
    """Return how a shard differs from its manifest, reading all of it, or None."""
    for name, sha256 in ((entry.file, entry.sha256), (entry.sidecar, entry.sidecar_sha256)):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := sha256_file(folder / name)) != sha256:
            return f"{name} has SHA-256 {found[:12]}, its manifest says {sha256[:12]}"
    return None


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
