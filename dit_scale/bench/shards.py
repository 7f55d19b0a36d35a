"""The shards that readers are measured on: synthetic ones, or the first of a folder's."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dit_scale.classes import ClassNames
from dit_scale.data.manifest import Manifest, ShardEntry, StoredArray, Transform, read_manifest
from dit_scale.data.record import MOMENTS_DTYPE, CropLayout, RecordLayout
from dit_scale.data.shards import Record, shard_name, write_shard
from dit_scale.data.statistics import no_latents
from dit_scale.errors import InputError
from dit_scale.files import full_disk_explained
from dit_scale.latents import LatentSpec

_LATENTS = LatentSpec(channels=4, size=32, scale=(0.18215,))
"""ImageNet at 256 px through Stable Diffusion's autoencoder: 16 KiB of moments a mirror."""
_IMAGE_SIZE = 256
_NUM_CLASSES = 1000
_SHARD_RECORDS = 1024


def write_synthetic(folder: Path, num_records: int, mirrors: int, with_crops: bool = False) -> Manifest:
    """Write shards of random moments (and crops) of ImageNet's shape; return their manifest."""
    layout, sums = RecordLayout(mirrors, _LATENTS.moments_shape), no_latents(_LATENTS.channels, _LATENTS.size**2)
    crops = CropLayout(_IMAGE_SIZE) if with_crops else None
    entries: list[ShardEntry] = []
    folder.mkdir(parents=True)
    with full_disk_explained(folder):
        for number, first in enumerate(range(0, num_records, _SHARD_RECORDS)):
            indices = range(first, min(first + _SHARD_RECORDS, num_records))
            records = _random_records(indices, mirrors, crops)
            entry, shard_sums = write_shard(folder, shard_name(number), layout, records, crops)
            sums += shard_sums
            entries.append(entry)
    manifest = Manifest(
        latents=_LATENTS,
        mirrors=mirrors,
        container="tar",
        stored=StoredArray(),
        autoencoder={"kind": "synthetic", "name": "synthetic", "revision": None, "sha256": "0" * 64},
        transform=Transform("synthetic", _IMAGE_SIZE),
        class_names=ClassNames(map(str, range(_NUM_CLASSES))),
        statistics=sums.statistics(),
        rejected=0,
        shards=tuple(entries),
    )
    manifest.write(folder)
    return manifest


def link_first(source: Path, folder: Path, num_records: int) -> Manifest:
    """Make a folder of links to the first shards that hold so many records between them; return its manifest."""
    manifest = read_manifest(source)
    if manifest.container != "tar":
        raise InputError(
            f"'{source}' holds {manifest.container} shards, which not every reader of the benchmark reads; give a "
            f"folder of tars that dit-scale encode or convert wrote"
        )
    ends = itertools.accumulate(shard.records for shard in manifest.shards)
    count = next((number for number, end in enumerate(ends, start=1) if end >= num_records), len(manifest.shards))
    chosen = replace(manifest, shards=manifest.shards[:count])
    folder.mkdir(parents=True)
    for shard in chosen.shards:
        for name in shard.sha256_of_files:
            (folder / name).symlink_to((source / name).absolute())
    chosen.write(folder)
    return chosen


def _random_records(indices: range, mirrors: int, crops: CropLayout | None) -> Iterator[Record]:
    rng = np.random.default_rng(indices.start)
    for index in indices:
        moments = rng.standard_normal((mirrors, *_LATENTS.moments_shape), np.float32).astype(MOMENTS_DTYPE)
        crop = rng.integers(0, 256, crops.shape, np.uint8) if crops else None
        yield Record(index, f"{index}.jpg", index * 7919 % _NUM_CLASSES, moments, crop=crop)
