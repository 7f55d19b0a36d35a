"""The manifest: what a shard folder holds, and a fingerprint of all of it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dit_scale.data.record import MOMENTS_DTYPE, RecordLayout
from dit_scale.data.statistics import LatentStatistics
from dit_scale.errors import InputError
from dit_scale.files import write_json
from dit_scale.latents import LatentSpec

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Transform:
    """How an image became the encoder's input."""

    name: str
    image_size: int


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its tar and, beside it, its sidecar."""

    name: str
    """File name without its ending."""
    records: int
    bytes: int
    sha256: str
    sidecar_sha256: str

    @property
    def tar_name(self) -> str:
        """File name of the records."""
        return f"{self.name}.tar"

    @property
    def sidecar_name(self) -> str:
        """File name of labels, digests and source names."""
        return f"{self.name}.npy"


@dataclass(frozen=True)
class Manifest:
    """All that a reader of the shards must know; equal for equal shards, wherever, whenever and by whomever made."""

    latents: LatentSpec
    mirrors: int
    dtype: str
    """Type of the stored moments."""
    record_stride_bytes: int
    autoencoder: dict[str, Any]
    """Identity of the autoencoder, which is kept beside the shards."""
    transform: Transform
    class_names: tuple[str, ...]
    """In the order of the labels; for ImageNet the wnids."""
    statistics: LatentStatistics
    rejected: int
    """Source images that have no record, listed in rejected.jsonl."""
    shards: tuple[ShardEntry, ...]

    @property
    def layout(self) -> RecordLayout:
        """Where the bytes of a record lie."""
        return RecordLayout(self.mirrors, self.latents.moments_shape)

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
        return {"format_version": FORMAT_VERSION} | asdict(self)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a shard folder, or raise InputError saying why there is none that can be trusted."""
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise InputError(f"shard folder '{folder}' does not exist; dit-scale encode makes one")
    if not path.is_file():
        raise InputError(
            f"'{folder}' has no {FILE_NAME}, so it is no shard folder or its encoding is unfinished; "
            f"run dit-scale encode with this output, which makes what is missing"
        )
    try:
        content = json.loads(path.read_bytes())
        version, fingerprint = int(content.pop("format_version")), str(content.pop("fingerprint"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is not a manifest ({error!r}); delete it and run dit-scale encode again") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"'{path}' has format version {version}, this dit_scale reads {FORMAT_VERSION}; "
            f"{'update dit_scale' if version > FORMAT_VERSION else 'encode the images again'}"
        )
    manifest = _parse(content, path)
    if manifest.fingerprint != fingerprint:
        raise InputError(
            f"'{path}' was changed after it was written: its fingerprint is {fingerprint[:12]}, its content gives "
            f"{manifest.fingerprint[:12]}; delete it and run dit-scale encode with the same settings"
        )
    return manifest


def _parse(content: dict[str, Any], path: Path) -> Manifest:
    try:
        latents, statistics = content.pop("latents"), content.pop("statistics")
        manifest = Manifest(
            latents=LatentSpec.from_json(latents),
            transform=Transform(**content.pop("transform")),
            statistics=LatentStatistics(**_with_tuples(statistics)),
            shards=tuple(ShardEntry(**shard) for shard in content.pop("shards")),
            **_with_tuples(content),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' lacks or has a key that its format does not ({error}); encode anew") from error
    if manifest.dtype != MOMENTS_DTYPE.name or manifest.record_stride_bytes != manifest.layout.stride_bytes:
        raise InputError(
            f"'{path}' tells of {manifest.dtype} records every {manifest.record_stride_bytes} bytes, this dit_scale "
            f"reads {MOMENTS_DTYPE.name} every {manifest.layout.stride_bytes}; encode the images again"
        )
    return manifest


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Return values read from JSON with tuples where dataclasses have them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
