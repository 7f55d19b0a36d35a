"""Shard folders turned into MDS, the format of mosaicml-streaming, and back, without encoding again.

An MDS file is a count, the offsets of its samples, a text that describes its columns, then the samples; so each
record's moments lie at an offset, which the sidecar keeps, and our reader needs nothing else. Whoever uses
mosaicml-streaming reads the same folder by its index.json. Crops stay the file beside the shard that they are.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from dit_scale.conditioning import RecordArray
from dit_scale.data.folder import ShardFolder
from dit_scale.data.manifest import FILE_NAME, Manifest, ShardEntry, manifest_in, read_manifest
from dit_scale.data.opening import open_storage
from dit_scale.data.record import MOMENTS_DTYPE, key_of
from dit_scale.data.shards import (
    CROP_DIGEST,
    WAY_OUT,
    Record,
    Rows,
    crops_beside,
    digest_column,
    offset_column,
    read_sidecar,
    shard_name,
    write_shard,
    write_sidecar,
)
from dit_scale.data.storage import File, LocalStorage, Storage
from dit_scale.errors import InputError
from dit_scale.files import (
    atomic_write,
    exclusive_lock,
    fsync_folder,
    full_disk_explained,
    make_writable_folder,
    remove,
    sha256_file,
)
from dit_scale.progress import passed_on

_COMPANIONS = ("autoencoder.safetensors", "rejected.jsonl")
_HASH = "xxh64"

_Kind = Literal["tar", "mds"]
_Convert = Callable[[Storage, Manifest, Path], tuple[ShardEntry, ...]]


def to_mds(source: str | Path, target: str | Path) -> Manifest:
    """Write a folder of our tars as MDS files, one for each tar; return the new folder's manifest."""
    return _convert(source, Path(target), "tar", "mds", _write_mds)


def to_tar(source: str | Path, target: str | Path) -> Manifest:
    """Write a folder of MDS files as tars, the same to the byte as those that they came from."""
    return _convert(source, Path(target), "mds", "tar", _write_tars)


def _convert(source: str | Path, target: Path, source_kind: _Kind, target_kind: _Kind, write: _Convert) -> Manifest:
    """Write a folder of another kind beside ``target``, and rename it when it is whole and on disk."""
    storage = open_storage(source)
    try:
        manifest = manifest_in(storage)
        if manifest.container != source_kind:
            raise InputError(f"'{source}' holds {manifest.container} shards; only {source_kind} becomes {target_kind}")
        with _folder_in_the_making(target) as work:
            if work is None:
                return _the_same(storage, manifest, target, target_kind)
            made = replace(manifest, container=target_kind, shards=write(storage, manifest, work))
            _copy_companions(storage, work)
            made.write(work)
        return made
    finally:
        storage.close()


@contextmanager
def _folder_in_the_making(target: Path) -> Iterator[Path | None]:
    """Give an empty folder that becomes ``target`` at the end, or None where that is there already.

    One that was left half made is removed: this goes fast enough to start from scratch.
    """
    target = target.absolute()
    make_writable_folder(target.parent, "the folder of the new shards")
    work, lock = (target.with_name(f".{target.name}.{ending}") for ending in ("converting", "lock"))
    with exclusive_lock(lock, f"'{target}' is being written by {{holder}}; wait for that, or stop it"):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            yield None
            lock.unlink(missing_ok=True)
            return
        remove(work)
        work.mkdir()
        try:
            with full_disk_explained(target.parent, "which starts from scratch"):
                yield work
                for place in (*work.iterdir(), work):  # all on disk before the folder gets its name
                    fsync_folder(place)
                work.rename(target)
                fsync_folder(target.parent)
            lock.unlink(missing_ok=True)  # held, and what it guards is done: whoever waits for it finds the target
        finally:
            remove(work)


def _write_mds(storage: Storage, manifest: Manifest, work: Path) -> tuple[ShardEntry, ...]:
    from streaming import MDSWriter  # takes seconds: only where it is needed

    columns = _columns(manifest)
    entries = []
    with MDSWriter(columns=columns, out=str(work), hashes=[_HASH], size_limit=None) as writer:
        for entry in passed_on("converted", manifest.shards, len(manifest.shards)):
            rows, named_later = read_sidecar(storage, entry), work / "crops"
            with crops_beside(named_later, manifest.crops) as crop_file:
                for record in _records(storage, manifest, entry, rows):
                    writer.write(_sample(record))
                    crop_file.take(record)
            if writer.new_shard_size >= 1 << 32:
                raise InputError(f"shard '{storage.location}/{entry.file}' is too large for MDS, which ends at 4 GiB")
            # What write() does when a shard is full: a shard there for each one here.
            writer.flush_shard()
            writer._reset_cache()
            path = work / writer.shards[-1]["raw_data"]["basename"]
            made = _entry_of_mds(path, rows, manifest)
            if manifest.crops:
                named_later.with_suffix(".crops").rename(work / made.crops)
            entries.append(replace(made, crops_sha256=crop_file.sha256()))
    return tuple(entries)


class _Held(NamedTuple):
    """An array of each record, and what sidecars call its digests and its offsets."""

    array: RecordArray
    digest: str
    offset: str


def _held(manifest: Manifest) -> list[_Held]:
    """Return what records hold: moments, then what conditions need."""
    moments = RecordArray("moments", MOMENTS_DTYPE.name, (manifest.mirrors, *manifest.latents.moments_shape))
    arrays = (_Held(array, digest_column(array.name), offset_column(array.name)) for array in manifest.arrays)
    return [_Held(moments, "digest", "offset"), *arrays]


def _columns(manifest: Manifest) -> dict[str, str]:
    """Return what MDS calls the columns and their types."""
    columns = {"key": "str", "label": "int", "name": "str"}
    for array, _, _ in _held(manifest):
        columns[array.name] = f"ndarray:{array.dtype}:{','.join(str(size) for size in array.shape)}"
    return columns


def _sample(record: Record) -> dict[str, object]:
    """Return a record as MDSWriter takes it; a name that is no text in UTF-8 is whole in the sidecar alone."""
    name = os.fsencode(record.source_name).decode("utf-8", "replace")
    own = {"key": key_of(record.source_index), "label": record.label, "moments": record.moments, "name": name}
    return own | dict(record.arrays)


def _entry_of_mds(path: Path, rows: Rows, manifest: Manifest) -> ShardEntry:
    """Write the sidecar of an MDS file; return what the manifest says of the two."""
    content = np.memmap(path, np.uint8, "r")
    samples = content[4 : 4 * (1 + len(rows))].view("<u4").astype(np.int64)  # after their count
    held = _held(manifest)
    begins = _begins_of_columns(content, samples, {array.name: array.num_bytes for array, _, _ in held} | {"label": 8})
    for array, digest, _ in held:
        for begin, digests in zip(begins[array.name].tolist(), rows[digest], strict=True):
            if not _has_digests(content[begin : begin + array.num_bytes], digests):
                raise RuntimeError(f"'{path}' is not laid out as MDS files were when this was written")
    columns = {offset: begins[array.name] for array, _, offset in held}
    sidecar_sha256 = write_sidecar(path.with_suffix(".npy"), _with_offsets(rows, columns))
    return ShardEntry(path.name, len(rows), path.stat().st_size, sha256_file(path), sidecar_sha256)


def _begins_of_columns(
    content: npt.NDArray[np.uint8], samples: npt.NDArray[np.int64], num_bytes: Mapping[str, int]
) -> dict[str, npt.NDArray[np.int64]]:
    """Return where each column of each sample begins; ``num_bytes`` is of the columns but key and name.

    A sample: the lengths of key and name, 4 bytes each; then the columns in the order of their names.
    """
    lengths = [content[begin : begin + 8].view("<u4") for begin in samples]
    key_bytes, name_bytes = np.array(lengths, np.int64).reshape(-1, 2).T
    sizes: dict[str, Any] = {"key": key_bytes, "name": name_bytes} | dict(num_bytes)
    begins, end = {}, samples + 8
    for column in sorted(sizes):
        begins[column], end = end, end + sizes[column]
    return begins


def _with_offsets(rows: Rows, offsets: Mapping[str, npt.NDArray[np.int64]]) -> Rows:
    """Return a sidecar with more columns."""
    result = np.empty(len(rows), np.dtype([*rows.dtype.descr, *((name, "<i8") for name in offsets)]))
    for name in rows.dtype.names or ():
        result[name] = rows[name]
    for name, values in offsets.items():
        result[name] = values
    return result


def _write_tars(storage: Storage, manifest: Manifest, work: Path) -> tuple[ShardEntry, ...]:
    entries = []
    for number, entry in enumerate(passed_on("converted", manifest.shards, len(manifest.shards))):
        records = _records(storage, manifest, entry, read_sidecar(storage, entry))
        entries.append(write_shard(work, shard_name(number), manifest.layout, records, manifest.crops)[0])
    return tuple(entries)


def _records(storage: Storage, manifest: Manifest, entry: ShardEntry, rows: Rows) -> Iterator[Record]:
    """Yield a shard's records, each with the digests that were taken when it was first written."""
    file, where = File(entry.file, entry.bytes), f"{storage.location}/{entry.file}"
    if fault := storage.check(file):
        raise InputError(f"shard '{where}' {fault}; {WAY_OUT}")
    held = _held(manifest)
    offsets = {
        array.name: rows[offset] if manifest.container == "mds" else _tar_offsets(manifest, array.name, len(rows))
        for array, _, offset in held
    }
    opened = ShardFolder(storage, replace(manifest, shards=(entry,)), [rows])
    if manifest.crops:
        opened.prepare_crops()
    for number, row in enumerate(rows):
        source_index, arrays = int(row["source_index"]), {}
        for array, digest, _ in held:
            values = np.empty(array.shape, array.dtype)
            content = values.reshape(-1).view(np.uint8)
            count = storage.pread(file, content, int(offsets[array.name][number]))
            if count != len(content) or not _has_digests(content, row[digest]):
                raise InputError(
                    f"record {key_of(source_index)} of shard '{where}' does not have the digest that was taken when "
                    f"it was written; {WAY_OUT}"
                )
            arrays[array.name] = values
        name, crop = os.fsdecode(row["name"]), _crop(opened, number) if manifest.crops else None
        yield Record(source_index, name, int(row["label"]), arrays.pop("moments"), arrays, crop)


def _crop(opened: ShardFolder, number: int) -> npt.NDArray[np.uint8]:
    crop = np.empty(opened.crops.shape, np.uint8)
    for how in opened.read_crops(np.array([number]), [crop.reshape(-1)], verify=True).values():
        raise InputError(f"{how}; {WAY_OUT}")
    return crop


def _tar_offsets(manifest: Manifest, name: str, records: int) -> npt.NDArray[np.int64]:
    numbers, layout = np.arange(records), manifest.layout
    if name == "moments":
        return layout.offsets(numbers, np.zeros_like(numbers))
    return layout.array_offsets(name, numbers)


def _has_digests(content: npt.NDArray[np.uint8], digests: npt.NDArray[np.uint64]) -> bool:
    """Return whether an array, or each of a record's mirrors one after the other, has the digest it should."""
    digests = np.atleast_1d(digests)
    parts = content.reshape(len(digests), -1)
    return [xxh3_64_intdigest(part) for part in parts] == digests.tolist()


def _copy_companions(storage: Storage, work: Path) -> None:
    for name in _COMPANIONS:
        try:
            content = storage.content(name)
        except FileNotFoundError:
            continue
        with atomic_write(work / name) as file:
            file.write(content)


def _the_same(storage: Storage, manifest: Manifest, target: Path, kind: _Kind) -> Manifest:
    """Return the manifest of a target that is there already, if it is what the source becomes."""
    if not (target / FILE_NAME).is_file():
        raise InputError(f"'{target}' is there and is no shard folder; give a folder that does not exist")
    found, there = read_manifest(target), LocalStorage(target)
    if (
        replace(found, container=manifest.container, shards=()) != replace(manifest, shards=())
        or found.container != kind
        or found.crops != manifest.crops
        or not _same_records(storage, manifest, there, found)
    ):
        raise InputError(
            f"'{target}' holds something else, with fingerprint {found.fingerprint[:12]}; give another folder"
        )
    for entry in found.shards:
        for file in (File(entry.file, entry.bytes), *found.crop_files(entry)):
            if fault := there.check(file):
                raise InputError(f"shard '{target / file.name}' {fault}; delete '{target}' and run this again")
    return found


def _same_records(storage: Storage, manifest: Manifest, there: Storage, found: Manifest) -> bool:
    if len(found.shards) != len(manifest.shards):
        return False
    for mine, theirs in zip(manifest.shards, found.shards, strict=True):
        rows, others = read_sidecar(storage, mine), read_sidecar(there, theirs)
        digests = [digest_column(array.name) for array in manifest.arrays] + ([CROP_DIGEST] if manifest.crops else [])
        columns = ("source_index", "label", "digest", *digests, "name")
        if not all(np.array_equal(rows[name], others[name]) for name in columns):
            return False
    return True
