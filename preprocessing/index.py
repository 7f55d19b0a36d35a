"""`dit-scale index`: make a folder of tars of latents that others wrote readable at random, without copying them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit_scale.autoencoder import FILE_NAME as AUTOENCODER_FILE
from dit_scale.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from dit_scale.classes import ClassNames
from dit_scale.data.manifest import FILE_NAME, Manifest, ShardEntry, StoredArray, Transform
from dit_scale.data.shards import is_sidecar, write_sidecar
from dit_scale.data.statistics import LatentSums, no_latents
from dit_scale.errors import InputError
from dit_scale.files import full_disk_explained, make_writable_folder, sha256_file
from dit_scale.kinds import kind_of
from dit_scale.latents import NO_VARIANCE_LOG_VARIANCE, LatentSpec
from preprocessing.arrays import Samples, read_array, samples_of
from preprocessing.job import STATE_FOLDER
from preprocessing.sources.archives import tars_of
from preprocessing.sources.classes import check_counted_from_zero, numbers_up_to
from preprocessing.sources.layout import check_one_split
from preprocessing.sources.names import LeftOut
from preprocessing.sources.summary import found_in_words, plural

_TAKE = "--no-check-labels"


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
    check_labels: bool = True
    """Refuse tars of several splits, and labels that count from 1."""


def index(folder: Path, description: Description) -> Manifest:
    """Write sidecars and a manifest beside the tars of a folder; the tars themselves stay as they are.

    Where it is refused, none of these files is left.
    """
    if folder.is_file():
        raise InputError(f"'{folder}' is {kind_of(folder)}, not a folder; give the folder that the tars lie in")
    tars = tars_of(folder) if folder.is_dir() else []
    if not tars:
        raise InputError(f"'{folder}' holds no .tar file; give a folder of webdataset tars of latents")
    _check_free(folder, tars)
    if description.check_labels:
        check_one_split(tars, _TAKE)
    make_writable_folder(folder, "folder")
    autoencoder = load_autoencoder(description.autoencoder)
    found, names = _list(folder, tars, description)
    with full_disk_explained(folder, "which starts from scratch"), _undone(folder, tars):
        manifest = _scan(found, names, autoencoder, description)
        save_autoencoder(autoencoder, folder)
        manifest.write(folder)
    print(
        f"{plural(manifest.num_records, 'record')} in {plural(len(tars), 'shard')}, "
        f"fingerprint {manifest.fingerprint[:12]}"
    )
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


@contextmanager
def _undone(folder: Path, tars: list[Path]) -> Iterator[None]:
    """Remove the sidecars, and the autoencoder where there was none, if what is done here fails."""
    made = [tar.with_suffix(".npy") for tar in tars]  # those of an indexing that was killed may go, too
    if not (folder / AUTOENCODER_FILE).exists():
        made.append(folder / AUTOENCODER_FILE)
    try:
        yield
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def _list(folder: Path, tars: list[Path], description: Description) -> tuple[dict[Path, Samples], ClassNames]:
    """Return each tar's samples and the class names; say what was found, and refuse labels that cannot be meant."""
    left_out = LeftOut()
    found = {tar: samples_of(tar, description.member, left_out) for tar in tars}
    labels = np.concatenate([samples.labels for samples in found.values()])
    if not len(labels):
        raise InputError(f"no tar holds a member KEY.{description.member} with a label; give the right --member")
    highest, names = int(labels.max()), description.class_names
    if names is None:
        names = ClassNames(numbers_up_to(highest, f"'{folder}'"))
    elif highest >= len(names):
        raise InputError(
            f"label {highest} occurs, but there are {len(names)} class names; labels count from 0: give all names, or "
            f"lower labels"
        )
    counts = np.bincount(labels, minlength=len(names))
    print(found_in_words(names, counts, left_out, "record"), file=sys.stderr, flush=True)
    if description.check_labels and description.class_names is None:
        check_counted_from_zero(counts, f"'{folder}'", _TAKE, "record")
    return found, names


def _scan(
    found: dict[Path, Samples], names: ClassNames, autoencoder: Autoencoder, description: Description
) -> Manifest:
    """Read all tars and write their sidecars; return the manifest."""
    scanned = _Scan(autoencoder, description)
    shards = []
    for number, (tar, samples) in enumerate(found.items(), 1):
        shards.append(scanned.shard(tar, samples))
        print(
            f"indexed {number}/{len(found)}  {tar.name}: {plural(len(samples), 'record')}", file=sys.stderr, flush=True
        )
    return scanned.manifest(tuple(shards), names)


class _Scan:
    """What the tars read so far have in common."""

    def __init__(self, autoencoder: Autoencoder, description: Description):
        self._autoencoder, self._description = autoencoder, description
        self._shape: tuple[int, ...] | None = None
        self._dtype = ""
        self._sums: LatentSums | None = None

    def shard(self, tar: Path, samples: Samples) -> ShardEntry:
        """Read one tar and write its sidecar."""
        rows: list[tuple[Any, ...]] = []
        with tar.open("rb") as file:
            for sample in samples:
                stored = read_array(file, tar, sample.member)
                self._check(tar, sample.key, stored.array)
                moments = self._moments(stored.array)
                sums = LatentSums.of(moments)
                self._sums = sums if self._sums is None else self._sums + sums
                rows.append((sample.key.encode(), sample.label, [stored.digest], stored.offset))
        longest = max((len(row[0]) for row in rows), default=1)
        columns = [("key", f"S{longest}"), ("label", "<i8"), ("digest", "<u8", (1,)), ("offset", "<i8")]
        sidecar_sha256 = write_sidecar(tar.with_suffix(".npy"), np.array(rows, np.dtype(columns)))
        return ShardEntry(tar.name, len(rows), tar.stat().st_size, sha256_file(tar), sidecar_sha256)

    def manifest(self, shards: tuple[ShardEntry, ...], names: ClassNames) -> Manifest:
        """Return the manifest of all tars."""
        assert self._shape is not None  # some tar holds a sample
        description, channels, size = self._description, self._autoencoder.channels, self._shape[-1]
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

    def _check(self, tar: Path, key: str, array: np.ndarray) -> None:
        """Raise InputError unless an array is like the first, like what the autoencoder makes, and finite."""
        channels = self._autoencoder.channels
        if self._shape is None:
            plain = array.shape[1:] if len(array.shape) == 4 and array.shape[0] == 1 else array.shape
            if len(plain) != 3 or plain[0] not in (channels, 2 * channels) or plain[1] != plain[2]:
                raise InputError(
                    f"'{key}' in '{tar}' has shape {array.shape}; autoencoder "
                    f"'{self._autoencoder.identity['name']}' makes latents [{channels}, h, h] or moments "
                    f"[{2 * channels}, h, h]: give the autoencoder that made them"
                )
            if plain[0] == 2 * channels and self._description.stored_scale != 1.0:
                raise InputError("the tars hold moments, which are stored unscaled; leave --stored-scale out")
            self._shape, self._dtype = array.shape, array.dtype.name
        if (array.shape, array.dtype.name) != (self._shape, self._dtype):
            raise InputError(
                f"'{key}' in '{tar}' is {array.dtype.name} {array.shape}, others are {self._dtype} {self._shape}; "
                f"one folder holds one kind"
            )
        if not np.isfinite(array).all():
            raise InputError(f"'{key}' in '{tar}' holds numbers that are infinite or not a number; write it again")

    def _moments(self, stored: np.ndarray) -> np.ndarray:
        """Return raw moments [1, 2C, h, w]."""
        array = stored.reshape(1, *stored.shape[-3:]).astype(np.float64)
        if self._has_variance:
            return array
        return np.concatenate(
            (array / self._description.stored_scale, np.full_like(array, NO_VARIANCE_LOG_VARIANCE)), 1
        )
