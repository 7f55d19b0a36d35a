"""Shards, written and read: a tar of records, and a sidecar that says what each record must be.

The sidecar is a structured npy array, a row a record: the source image's number and name, the label, and the xxh3-64
digest of each mirror's moments and of each further array (a crop, too); for records that do not lie at a stride, also
their offsets, and for those of others their key. Shards are written whole or not at all.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from dit_scale.data.manifest import ShardEntry
from dit_scale.data.record import END_OF_SHARD, CropLayout, RecordLayout, key_of
from dit_scale.data.statistics import LatentSums, no_latents
from dit_scale.data.storage import UNKNOWN_BYTES, File, Storage
from dit_scale.errors import InputError
from dit_scale.files import atomic_write, sha256_file

WAY_OUT = "run dit-scale verify with --repair, or delete it and run dit-scale encode again, which makes it again"
CROP_DIGEST = "crop_digest"
"""What sidecars call the digests of crops."""
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
    crop: np.ndarray | None = None
    """The image whose moments these are, uint8 [3, S, S], where crops are kept."""


def shard_name(number: int) -> str:
    """Return a shard's file name without its ending."""
    return f"shard-{number:06d}"


def write_shard(
    folder: Path, name: str, layout: RecordLayout, records: Iterable[Record], crops: CropLayout | None = None
) -> tuple[ShardEntry, LatentSums]:
    """Write a shard, its sidecar and, with a layout of crops, the file of these.

    Return what the manifest says of it and the sums over its latents.
    """
    channels, height, width = layout.moments_shape
    sums = no_latents(channels // 2, height * width)
    rows = []
    tar_path = folder / f"{name}.tar"
    with atomic_write(tar_path) as file, crops_beside(tar_path, crops) as crop_file:
        tar = _Hashing(file)
        for record in records:
            tar.write(layout.pack(key_of(record.source_index), record.moments, record.label, record.arrays))
            digests = [_digest(mirror) for mirror in record.moments]
            more = [_digest(record.arrays[array.name]) for array in layout.arrays] + crop_file.take(record)
            rows.append((record.source_index, record.label, digests, *more, os.fsencode(record.source_name)))
            sums += LatentSums.of(record.moments)
        tar.write(END_OF_SHARD)
    columns = [digest_column(array.name) for array in layout.arrays] + ([CROP_DIGEST] if crops else [])
    sidecar_sha256 = write_sidecar(folder / f"{name}.npy", _sidecar_rows(layout.mirrors, columns, rows))
    num_bytes, sha256 = layout.shard_bytes(len(rows)), tar.hexdigest()
    return ShardEntry(tar_path.name, len(rows), num_bytes, sha256, sidecar_sha256, crop_file.sha256()), sums


class CropFile:
    """Takes the crops of a shard's records, in their order; without a layout nothing."""

    def __init__(self, layout: CropLayout | None, file: "_Hashing | None"):
        self._layout, self._file = layout, file

    def take(self, record: Record) -> list[int]:
        """Write a record's crop; return its digest, where crops are kept."""
        if self._layout is None or self._file is None:
            return []
        if record.crop is None:
            raise ValueError(f"record {key_of(record.source_index)} has no crop, and crops are to be kept")
        self._file.write(self._layout.pack(key_of(record.source_index), record.crop))
        return [_digest(record.crop)]

    def sha256(self) -> str | None:
        """Return the file's SHA-256 once it is whole, or None where there is none."""
        return None if self._file is None else self._file.hexdigest()


@contextmanager
def crops_beside(shard: Path, layout: CropLayout | None) -> Iterator[CropFile]:
    """Write the file of crops that lies beside a shard's file; nothing where the layout is None."""
    if layout is None:
        yield CropFile(None, None)
        return
    with atomic_write(shard.with_suffix(".crops")) as file:
        hashing = _Hashing(file)
        yield CropFile(layout, hashing)
        hashing.write(END_OF_SHARD)


def digest_column(name: str) -> str:
    """Return what sidecars call the digests of an array."""
    return f"{name}_digest"


def offset_column(name: str) -> str:
    """Return what sidecars call the offsets of an array, where it does not lie at a stride."""
    return f"{name}_offset"


def _digest(array: np.ndarray) -> int:
    return xxh3_64_intdigest(np.ascontiguousarray(array).data)


def _sidecar_rows(mirrors: int, more: list[str], rows: list[tuple[Any, ...]]) -> Rows:
    """Return a sidecar's array from (source index, label, digests, more digests by name, source name) of a record."""
    longest_name = max((len(row[-1]) for row in rows), default=1)
    digests = [("digest", "<u8", (mirrors,)), *((name, "<u8") for name in more)]
    columns = [("source_index", "<i8"), ("label", "<i8"), *digests, ("name", f"S{longest_name}")]
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
    for name, sha256 in entry.sha256_of_files.items():
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
