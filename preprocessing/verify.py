"""`dit-scale verify`: is every shard what its manifest says, and make those again that are not."""

import math
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dit_scale.autoencoder import load_autoencoder
from dit_scale.config import EncodeConfig, load_config
from dit_scale.data.folder import ShardFolder
from dit_scale.data.manifest import FILE_NAME, Manifest, ShardEntry, read_manifest
from dit_scale.data.record import names_record
from dit_scale.data.shards import damage_of, read_sidecar
from dit_scale.data.storage import File, LocalStorage, is_remote
from dit_scale.errors import InputError, few
from dit_scale.progress import passed_on
from preprocessing.encode import encode
from preprocessing.job import STATE_FOLDER, Job
from preprocessing.planning import CONFIG, prepare
from preprocessing.sources.summary import plural

_SAMPLED_RECORDS = 16
_ENCODE_AGAIN = "encode the images again with another autoencoder"
_REMAKE = {
    "foreign": f"delete the {FILE_NAME} and run dit-scale index again, which names the first such record",
    "tar": _ENCODE_AGAIN,
    "mds": _ENCODE_AGAIN,
}


@dataclass(frozen=True)
class Damage:
    """A shard that is not what its manifest says."""

    number: int
    file: str
    how: str


def verify(folder: Path, *, quick: bool = False, repair: bool = False, overrides: list[str] | None = None) -> None:
    """Check a shard folder and say what was checked; raises InputError naming each damaged shard.

    Every byte is checked, or with ``quick`` sizes, sidecars and a few records a shard. With ``repair`` the damaged
    shards are encoded again, from the images that ``overrides`` or the folder's own settings tell of.
    """
    if is_remote(folder):
        raise InputError(
            f"'{folder}' is no folder of this machine; verify it where it was made, and what is read of it is checked "
            f"as it is read"
        )
    manifest = read_manifest(folder)
    load_autoencoder(manifest.autoencoder, folder=folder)  # raises where it is not the one that made the latents
    _check_finite(folder, manifest)
    found = find_damage(folder, manifest, quick=quick)
    for damage in found:
        print(f"damaged: {damage.file}: {damage.how}", file=sys.stderr, flush=True)
    if found and repair:
        before, manifest = manifest, _repair(folder, manifest, found, overrides or [])
        found = _still_damaged(folder, before, manifest, found)
    if found:
        raise InputError(
            f"{len(found)} of {len(manifest.shards)} shards of '{folder}' are damaged: "
            f"{few(damage.file for damage in found)}; give --repair to encode these again"
        )
    what = f"{_SAMPLED_RECORDS} records a shard, sizes and sidecars" if quick else "every byte"
    print(
        f"{folder}: {plural(len(manifest.shards), 'shard')}, {plural(manifest.num_records, 'record')}, "
        f"{manifest.num_bytes} bytes; {what} checked, all as the manifest says "
        f"(fingerprint {manifest.fingerprint[:12]})"
    )


def _check_finite(folder: Path, manifest: Manifest) -> None:
    """Raise InputError where the statistics tell of latents that are not finite; they are sums over every record."""
    statistics = manifest.statistics
    if not np.isfinite([*statistics.mean, *statistics.std]).all():
        raise InputError(
            f"latents of '{folder}' are infinite or not a number, as their mean and deviation in its {FILE_NAME} are; "
            f"{_REMAKE[manifest.container]}"
        )


def find_damage(folder: Path, manifest: Manifest, *, quick: bool = False) -> list[Damage]:
    """Return the shards that are not what the manifest says, several read at once."""

    def how(shard: ShardEntry) -> str | None:
        return _sampled_damage(folder, manifest, shard) if quick else damage_of(folder, shard)

    found = [
        Damage(number, shard.file, damage)
        for number, (shard, damage) in enumerate(zip(manifest.shards, _each(how, manifest.shards), strict=True))
        if damage is not None
    ]
    return found or ([] if quick else _repeated_keys(folder, manifest))


def _each(how: Callable[[ShardEntry], str | None], shards: tuple[ShardEntry, ...]) -> Iterator[str | None]:
    """Yield what is wrong with each shard."""
    with ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0)))) as pool:  # hashing and reading release Python's lock
        yield from passed_on("checked", pool.map(how, shards), len(shards))


def _sampled_damage(folder: Path, manifest: Manifest, shard: ShardEntry) -> str | None:
    """Return how a shard's sizes, sidecar or some of its records are wrong."""
    storage = LocalStorage(folder, patience_seconds=0.0)
    try:
        if wrong := storage.check(File(shard.file, shard.bytes)):
            return wrong
        opened = ShardFolder(storage, replace(manifest, shards=(shard,)), [read_sidecar(storage, shard)])
        if manifest.crops:
            opened.prepare_crops()
        if shard.records == 0:
            return None
        chosen = np.unique(np.linspace(0, shard.records - 1, _SAMPLED_RECORDS).astype(np.int64))
        if manifest.container == "tar" and (wrong := _wrong_header(folder / shard.file, opened, chosen)):
            return wrong
        return next(_damage_among(chosen, opened, manifest), None)
    except InputError as error:
        return str(error)
    finally:
        storage.close()


def _damage_among(records: npt.NDArray[np.int64], opened: ShardFolder, manifest: Manifest) -> Iterator[str]:
    """Yield how records are damaged: their moments, arrays and crops."""

    def buffers(num_bytes: int) -> npt.NDArray[np.uint8]:
        return np.empty((len(records), num_bytes), np.uint8)

    for mirror in range(manifest.mirrors):
        mirrors = np.full(len(records), mirror)
        yield from opened.read(records, mirrors, buffers(opened.row_bytes()), verify=True).values()
    for array in manifest.arrays:
        yield from opened.read_array(array.name, records, buffers(array.num_bytes), verify=True).values()
    if manifest.crops:
        crop_bytes = math.prod(manifest.crops.shape)
        yield from opened.read_crops(records, buffers(crop_bytes), verify=True).values()


def _wrong_header(path: Path, opened: ShardFolder, records: npt.NDArray[np.int64]) -> str | None:
    """Return which record's tar header does not name it."""
    with path.open("rb") as file:
        for record, key in zip(records.tolist(), opened.keys(records), strict=True):
            file.seek(record * opened.manifest.layout.stride_bytes)
            if not names_record(file.read(tarfile.BLOCKSIZE), key):
                return f"record {key} of shard '{path}' has no tar header where it should begin"
    return None


def _repeated_keys(folder: Path, manifest: Manifest) -> list[Damage]:
    """Return the shards with a key that an earlier record has, too; nothing that encode writes has one."""
    storage = LocalStorage(folder)
    column = "key" if manifest.container == "foreign" else "source_index"
    keys = [read_sidecar(storage, shard)[column] for shard in manifest.shards]
    shards = np.repeat(np.arange(len(keys)), [len(part) for part in keys])
    _, first = np.unique(np.concatenate(keys), return_index=True)
    repeated = np.setdiff1d(np.arange(len(shards)), first)
    return [
        Damage(number, manifest.shards[number].file, "has a key that another record has, too")
        for number in np.unique(shards[repeated]).tolist()
    ]


def _repair(folder: Path, before: Manifest, damaged: list[Damage], overrides: list[str]) -> Manifest:
    """Encode shards again, say where they have other bytes than they had when they were whole; return the manifest.

    Shards that are as they were made stay: then it is the manifest that belongs elsewhere.
    """
    settings = folder / STATE_FOLDER / CONFIG
    if not settings.is_file():
        raise InputError(
            f"'{folder}' was not encoded here: '{settings}' is missing; copy {damaged[0].file} from where it was made"
        )
    config = load_config(EncodeConfig, settings, [*overrides, f"output={folder}"], is_stored=True)
    job = prepare(config)
    here = [damage for damage in damaged if damage.number < job.num_shards]
    again = [damage for damage in here if not _is_as_made(job, damage.number)]
    makers = {damage.number: job.made_with(damage.number) for damage in again}
    for damage in again:
        job.discard(damage.number)
    after = encode(config)
    if after is None:
        raise InputError(f"other encoders are at work in '{folder}'; run this again when they are done")
    if len(again) < len(damaged):
        print(f"repaired: {FILE_NAME}, which told of other shards than were made here")
    for damage in again:
        _tell(damage, before, after, makers[damage.number], job)
    if after.fingerprint != before.fingerprint:
        print(
            f"the manifest's fingerprint was {before.fingerprint[:12]} and is {after.fingerprint[:12]}; a run that "
            f"began with the old bytes goes on with data.check_fingerprint=false"
        )
    return after


def _is_as_made(job: Job, number: int) -> bool:
    receipt = job.receipt(number)
    return receipt is not None and damage_of(job.output, receipt.entry) is None


def _still_damaged(folder: Path, before: Manifest, after: Manifest, damaged: list[Damage]) -> list[Damage]:
    """Check what a repair was about, and what the manifest now says otherwise."""
    files = {damage.file for damage in damaged} | {shard.file for shard in {*after.shards} - {*before.shards}}
    hows = ((n, damage_of(folder, shard)) for n, shard in enumerate(after.shards) if shard.file in files)
    return [Damage(number, after.shards[number].file, how) for number, how in hows if how is not None]


def _tell(damage: Damage, before: Manifest, after: Manifest, maker: str | None, job: Job) -> None:
    if before.shards[damage.number] in after.shards:
        print(f"repaired: {damage.file}, the same bytes as before")
        return
    print(
        f"repaired: {damage.file}, with OTHER bytes than before: made with {job.made_with(damage.number)}, "
        f"before with {maker or 'unknown versions'}"
    )
