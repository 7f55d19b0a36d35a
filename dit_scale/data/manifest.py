"""The manifest: what a shard folder holds, and a fingerprint of all of it."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from dit_scale.classes import ClassNames
from dit_scale.conditioning import RecordArray
from dit_scale.data.record import MOMENTS_DTYPE, CropLayout, RecordLayout
from dit_scale.data.statistics import LatentStatistics
from dit_scale.data.storage import File, LocalStorage, Storage
from dit_scale.documents import Misfit, fitted, parsed
from dit_scale.errors import InputError
from dit_scale.files import write_json
from dit_scale.kinds import GZIP, TAR, ZIP, kind_of
from dit_scale.latents import LatentSpec

FILE_NAME = "manifest.json"
FORMAT_VERSION = 2


_CAME_LATER = {"arrays": (), "crops_sha256": None}
"""Fields that older documents do not have, and what they are where they say nothing."""


def _without_what_came_later(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a document's object as it was before there were fields that say nothing in it."""
    return {name: value for name, value in items if name not in _CAME_LATER or value != _CAME_LATER[name]}


@dataclass(frozen=True)
class Transform:
    """How an image became the encoder's input."""

    name: str
    image_size: int


@dataclass(frozen=True)
class ShardEntry:
    """One shard: the file of its records and, beside it, its sidecar."""

    file: str
    """Name of the file of the records, below the shard folder."""
    records: int
    bytes: int
    sha256: str
    sidecar_sha256: str
    crops_sha256: str | None = None
    """None where no crops are kept."""

    @property
    def sidecar(self) -> str:
        """Name of the file of labels, digests and source names."""
        return str(Path(self.file).with_suffix(".npy"))

    @property
    def crops(self) -> str:
        """Name of the file of the records' crops, where they are kept."""
        return str(Path(self.file).with_suffix(".crops"))

    @property
    def sha256_of_files(self) -> dict[str, str]:
        """The files of the shard by name, with the SHA-256 of each."""
        files = {self.file: self.sha256, self.sidecar: self.sidecar_sha256}
        return files | ({} if self.crops_sha256 is None else {self.crops: self.crops_sha256})

    def to_json(self) -> dict[str, Any]:
        """Return what documents say of it."""
        return asdict(self, dict_factory=_without_what_came_later)


@dataclass(frozen=True)
class StoredArray:
    """What one mirror of a record holds, and in which numbers."""

    dtype: str = MOMENTS_DTYPE.name
    has_variance: bool = True
    """Mean and log-variance, [2C, h, w]; or a latent alone, [C, h, w]."""
    scale: float = 1.0
    """What raw latents were multiplied by before they were stored (foreign ones may have been)."""

    def shape(self, latents: LatentSpec) -> tuple[int, int, int]:
        """Shape of one mirror."""
        return latents.moments_shape if self.has_variance else latents.shape

    def num_bytes(self, latents: LatentSpec) -> int:
        """Bytes of one mirror."""
        return math.prod(self.shape(latents)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Manifest:
    """All that a reader of the shards must know; equal for equal shards, wherever, whenever and by whomever made."""

    latents: LatentSpec
    mirrors: int
    container: Literal["tar", "mds", "foreign"]
    """Our own tars, whose records lie at a stride; or files whose sidecars say where each record lies: MDS, tars of
    latents that others wrote."""
    stored: StoredArray
    autoencoder: dict[str, Any]
    """Identity of the autoencoder, which is kept beside the shards."""
    transform: Transform
    class_names: ClassNames
    """In the order of the labels; for ImageNet the wnids."""
    statistics: LatentStatistics
    rejected: int
    """Source images that have no record, listed in rejected.jsonl."""
    shards: tuple[ShardEntry, ...]
    arrays: tuple[RecordArray, ...] = ()
    """What each record holds beside its moments and its label."""

    @property
    def layout(self) -> RecordLayout:
        """Where the bytes of a record of our own lie."""
        return RecordLayout(self.mirrors, self.latents.moments_shape, self.arrays)

    @property
    def crops(self) -> CropLayout | None:
        """Where the bytes of the crops lie that became the latents; None where they are not kept."""
        is_kept = all(shard.crops_sha256 is not None for shard in self.shards)
        return CropLayout(self.transform.image_size) if is_kept and self.shards else None

    def crop_files(self, *shards: ShardEntry) -> list[File]:
        """Return the files of these shards' crops; none where they are not kept."""
        crops = self.crops
        return [File(shard.crops, crops.file_bytes(shard.records)) for shard in shards] if crops else []

    @property
    def num_bytes(self) -> int:
        """Bytes of the records and crops of all shards."""
        return sum(shard.bytes for shard in self.shards) + sum(file.num_bytes for file in self.crop_files(*self.shards))

    @property
    def num_records(self) -> int:
        """Records in all shards: the images of an epoch."""
        return sum(shard.records for shard in self.shards)

    @property
    def normalised_rms(self) -> float:
        """Root mean square of the latents as the model sees them; training expects about 1."""
        numbers = (self.statistics.mean, self.statistics.std, self.latents.shift, self.latents.scale)
        mean, std, shift, scale = (np.array(values) for values in numbers)
        return float(np.sqrt(np.mean(((mean - shift) ** 2 + std**2) * scale**2)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, and so of every shard."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into a shard folder."""
        write_json(folder / FILE_NAME, {"fingerprint": self.fingerprint} | self._content())

    def _content(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION} | asdict(self, dict_factory=_without_what_came_later)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a shard folder, or raise InputError saying why there is none that can be trusted."""
    if folder.is_file():
        raise InputError(f"'{folder}' is {kind_of(folder)}, not a shard folder; {_what_takes(folder)}")
    if not folder.is_dir():
        raise InputError(f"shard folder '{folder}' does not exist; dit-scale encode makes one")
    path = folder / FILE_NAME
    if not path.is_file():
        raise InputError(_no_manifest(folder))
    return parse_manifest(path.read_bytes(), str(path))


def manifest_in(storage: Storage) -> Manifest:
    """Return the manifest of a shard folder wherever it lies."""
    if isinstance(storage, LocalStorage):
        return read_manifest(storage.folder())
    try:
        content = storage.content(FILE_NAME)
    except FileNotFoundError as error:
        raise InputError(_no_manifest(storage.location)) from error
    return parse_manifest(content, f"{storage.location}/{FILE_NAME}")


def _what_takes(file: Path) -> str:
    """Say what makes a shard folder of a file, or where its own is."""
    kind = kind_of(file)
    if (file.parent / FILE_NAME).is_file():
        return f"give the folder that it lies in, '{file.parent}'"
    if kind == TAR:
        return (
            "of images: dit-scale encode takes it as source.path; of latents (KEY.npy with KEY.cls): put it into a "
            "folder, run dit-scale index on that folder, and give the folder"
        )
    if kind in (ZIP, GZIP):
        how = "python -m zipfile -e" if kind == ZIP else "tar xf"
        return f"unpack it ({how}); dit-scale encode makes shards of images, dit-scale index of tars of latents"
    return (
        "dit-scale encode makes shards of images; latents go into tars (KEY.npy with KEY.cls), of which "
        "dit-scale index makes a shard folder"
    )


def _no_manifest(folder: object) -> str:
    return (
        f"'{folder}' has no {FILE_NAME}, so it is no shard folder or its encoding is unfinished; run dit-scale encode "
        f"with this output, which makes what is missing, or dit-scale index for tars of latents by others"
    )


def _described(stored: StoredArray) -> str:
    what = "means and log-variances" if stored.has_variance else "latents"
    return f"{what} as {stored.dtype} times {stored.scale:g}"


class _Head(TypedDict):
    format_version: int
    fingerprint: str


def parse_manifest(text: bytes, path: str) -> Manifest:
    """Return a manifest from the bytes of its file; raises InputError where it cannot be trusted."""
    fix = "delete it and run dit-scale encode again with the same settings, or dit-scale index for latents by others"
    try:
        head: Any = parsed(text, _Head)
    except Misfit as misfit:
        raise InputError(f"'{path}' is not a manifest of shards: {misfit}; {fix}") from misfit
    version, fingerprint = head.pop("format_version"), head.pop("fingerprint")
    if version != FORMAT_VERSION:
        raise InputError(
            f"'{path}' has format version {version}, this dit_scale reads {FORMAT_VERSION}; "
            f"{'update dit_scale' if version > FORMAT_VERSION else 'encode the images again'}"
        )
    try:
        manifest: Manifest = fitted(head, Manifest)
    except Misfit as misfit:
        raise InputError(f"'{path}' is not a manifest of format {FORMAT_VERSION}: {misfit}; {fix}") from misfit
    if manifest.container == "tar" and manifest.stored != StoredArray():
        raise InputError(
            f"'{path}' says that its tars hold {_described(manifest.stored)}, and ours hold "
            f"{_described(StoredArray())}; encode the images again"
        )
    if manifest.fingerprint != fingerprint:
        raise InputError(
            f"'{path}' was changed after it was written: its fingerprint is {fingerprint[:12]}, its content gives "
            f"{manifest.fingerprint[:12]}; delete it and run dit-scale encode with the same settings"
        )
    return manifest
