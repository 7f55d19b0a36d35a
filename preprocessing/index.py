"""`dit-scale index`: make a folder of tars of latents that others wrote readable at random, without copying them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit_scale.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from dit_scale.classes import ClassNames
from dit_scale.data.foreign import Sample, samples, sha256_and_size
from dit_scale.data.manifest import FILE_NAME, Manifest, ShardEntry, StoredArray, Transform
from dit_scale.data.shards import is_sidecar, write_sidecar
from dit_scale.data.statistics import LatentSums, no_latents
from dit_scale.errors import InputError
from dit_scale.files import full_disk_explained, make_writable_folder
from dit_scale.kinds import kind_of
from dit_scale.latents import NO_VARIANCE_LOG_VARIANCE, LatentSpec
from preprocessing.job import STATE_FOLDER


@dataclass(frozen=True)
class Description:
    """What nobody can tell from the tars themselves."""

    autoencoder: str
    """Name of the autoencoder that made the latents, or its folder."""
    scale: tuple[float, ...] | None = None
    """What raw latents are multiplied by for the model; None takes the autoencoder's own."""
    shift: tuple[float, ...] | None = None
    stored_scale: float = 1.0
    """What the stored latents were multiplied by already."""
    class_names: ClassNames | None = None
    """In the order of the labels; None takes the numbers."""
    member: str = "npy"
    """Ending of the members that hold the latents."""


def index(folder: Path, description: Description) -> Manifest:
    """Write sidecars and a manifest beside the tars of a folder; the tars themselves stay as they are."""
    if folder.is_file():
        raise InputError(f"'{folder}' is {kind_of(folder)}, not a folder; give the folder that the tars lie in")
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise InputError(f"'{folder}' holds no .tar file; give a folder of webdataset tars of latents")
    _check_free(folder, tars)
    make_writable_folder(folder, "folder")
    autoencoder = load_autoencoder(description.autoencoder)
    with full_disk_explained(folder, "which starts from scratch"):
        manifest = _scan(tars, autoencoder, description)
        save_autoencoder(autoencoder, folder)
        manifest.write(folder)
    print(f"{manifest.num_records} records in {len(tars)} shards, fingerprint {manifest.fingerprint[:12]}")
    return manifest


def _check_free(folder: Path, tars: list[Path]) -> None:
    """Raise InputError where a file of ours, or of somebody else's, is in the way."""
    if (folder / FILE_NAME).exists():
        raise InputError(f"'{folder}' has a {FILE_NAME} already; delete it to index the tars again")
    if (folder / STATE_FOLDER).exists():
        raise InputError(f"'{folder}' is being encoded, or was; run dit-scale encode again, which ends with a manifest")
    for path in (tar.with_suffix(".npy") for tar in tars):
        if path.exists() and not is_sidecar(path):  # one of ours is left by an indexing that was killed
            raise InputError(f"'{path}' stands where the sidecar of its tar belongs; move it, or the tars, elsewhere")


def _scan(tars: list[Path], autoencoder: Autoencoder, description: Description) -> Manifest:
    """Read all tars and write their sidecars; return the manifest."""
    scanned = _Scan(autoencoder, description)
    shards = []
    for number, tar in enumerate(tars, 1):
        shards.append(scanned.shard(tar))
        print(f"indexed {number}/{len(tars)}  {tar.name}: {shards[-1].records} records", file=sys.stderr, flush=True)
    return scanned.manifest(tuple(shards))


class _Scan:
    """What the tars read so far have in common."""

    def __init__(self, autoencoder: Autoencoder, description: Description):
        self._autoencoder, self._description = autoencoder, description
        self._shape: tuple[int, ...] | None = None
        self._dtype = ""
        self._labels = -1
        self._sums: LatentSums | None = None

    def shard(self, tar: Path) -> ShardEntry:
        """Read one tar and write its sidecar."""
        rows: list[tuple[Any, ...]] = []
        for sample in samples(tar, self._description.member):
            self._check(tar, sample)
            self._labels = max(self._labels, sample.label)
            moments = self._moments(sample)
            sums = LatentSums.of(moments)
            self._sums = sums if self._sums is None else self._sums + sums
            rows.append((sample.key.encode(), sample.label, [sample.digest], sample.offset))
        sha256, num_bytes = sha256_and_size(tar)
        longest = max((len(row[0]) for row in rows), default=1)
        columns = [("key", f"S{longest}"), ("label", "<i8"), ("digest", "<u8", (1,)), ("offset", "<i8")]
        sidecar_sha256 = write_sidecar(tar.with_suffix(".npy"), np.array(rows, np.dtype(columns)))
        return ShardEntry(tar.name, len(rows), num_bytes, sha256, sidecar_sha256)

    def manifest(self, shards: tuple[ShardEntry, ...]) -> Manifest:
        """Return the manifest of all tars."""
        if self._shape is None:
            raise InputError(
                f"no tar holds a member KEY.{self._description.member} with a label; give the right --member"
            )
        description, channels, size = self._description, self._autoencoder.channels, self._shape[-1]
        names = description.class_names or ClassNames(map(str, range(self._labels + 1)))
        if self._labels >= len(names):
            raise InputError(f"label {self._labels} occurs, but there are {len(names)} class names; give them all")
        return Manifest(
            latents=LatentSpec(
                channels,
                size,
                description.scale or self._autoencoder.scale,
                description.shift or self._autoencoder.shift,
            ),
            mirrors=1,
            container="foreign",
            stored=StoredArray(self._dtype, self._has_variance, description.stored_scale),
            autoencoder=self._autoencoder.identity,
            transform=Transform("unknown", size * self._autoencoder.downsampling),
            class_names=names,
            statistics=(self._sums or no_latents(channels, size**2)).statistics(),
            rejected=0,
            shards=shards,
        )

    @property
    def _has_variance(self) -> bool:
        assert self._shape is not None
        return self._shape[-3] == 2 * self._autoencoder.channels

    def _check(self, tar: Path, sample: Sample) -> None:
        """Raise InputError unless a sample is like the first and like what the autoencoder makes."""
        channels = self._autoencoder.channels
        if self._shape is None:
            plain = sample.shape[1:] if len(sample.shape) == 4 and sample.shape[0] == 1 else sample.shape
            if len(plain) != 3 or plain[0] not in (channels, 2 * channels) or plain[1] != plain[2]:
                raise InputError(
                    f"'{sample.key}' in '{tar}' has shape {sample.shape}; autoencoder "
                    f"'{self._autoencoder.identity['name']}' makes latents [{channels}, h, h] or moments "
                    f"[{2 * channels}, h, h]: give the autoencoder that made them"
                )
            if plain[0] == 2 * channels and self._description.stored_scale != 1.0:
                raise InputError("the tars hold moments, which are stored unscaled; leave --stored-scale out")
            self._shape, self._dtype = sample.shape, sample.dtype
        if (sample.shape, sample.dtype) != (self._shape, self._dtype):
            raise InputError(
                f"'{sample.key}' in '{tar}' is {sample.dtype} {sample.shape}, others are {self._dtype} {self._shape}; "
                f"one folder holds one kind"
            )

    def _moments(self, sample: Sample) -> np.ndarray:
        """Return raw moments [1, 2C, h, w]."""
        array = sample.array.reshape(1, *sample.array.shape[-3:]).astype(np.float64)
        if self._has_variance:
            return array
        return np.concatenate(
            (array / self._description.stored_scale, np.full_like(array, NO_VARIANCE_LOG_VARIANCE)), 1
        )
