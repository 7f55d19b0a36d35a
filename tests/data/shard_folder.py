"""A small shard folder of random moments, written by the writer itself."""

from pathlib import Path

import numpy as np

from dit_scale.conditioning import RecordArray
from dit_scale.data.manifest import Manifest, StoredArray, Transform
from dit_scale.data.record import MOMENTS_DTYPE, CropLayout, RecordLayout
from dit_scale.data.shards import Record, shard_name, write_shard
from dit_scale.data.statistics import no_latents
from dit_scale.latents import LatentSpec

LATENTS = LatentSpec(channels=4, size=4, scale=(0.5,))
CROPS = CropLayout(32)


def random_records(count: int, mirrors: int = 2, first: int = 0, arrays: tuple[RecordArray, ...] = ()) -> list[Record]:
    """Return records whose label is their number modulo 3."""
    rng = np.random.default_rng(first)
    moments = rng.normal(size=(count, mirrors, *LATENTS.moments_shape)).astype(MOMENTS_DTYPE)
    more = {array.name: rng.normal(size=(count, *array.shape)).astype(array.dtype) for array in arrays}
    crops = np.random.default_rng([first, 1]).integers(0, 256, (count, *CROPS.shape), np.uint8)
    return [
        Record(
            first + i,
            f"class/{first + i}.png",
            (first + i) % 3,
            moments[i],
            {name: values[i] for name, values in more.items()},
            crops[i],
        )
        for i in range(count)
    ]


def write_folder(
    folder: Path,
    shard_records: list[int],
    mirrors: int = 2,
    arrays: tuple[RecordArray, ...] = (),
    with_crops: bool = False,
) -> list[Record]:
    """Write shards of so many records each, and their manifest; return the records."""
    folder.mkdir(parents=True, exist_ok=True)
    layout = RecordLayout(mirrors, LATENTS.moments_shape, arrays)
    records, entries, sums = [], [], no_latents(LATENTS.channels, LATENTS.size**2)
    for number, count in enumerate(shard_records):
        mine = random_records(count, mirrors, first=len(records), arrays=arrays)
        entry, shard_sums = write_shard(folder, shard_name(number), layout, mine, CROPS if with_crops else None)
        records, sums = records + mine, sums + shard_sums
        entries.append(entry)
    Manifest(
        latents=LATENTS,
        mirrors=mirrors,
        container="tar",
        stored=StoredArray(),
        autoencoder={"kind": "pca", "name": "pca", "revision": None, "sha256": "0" * 64},
        transform=Transform("adm-centre-crop", CROPS.image_size),
        class_names=("a", "b", "c"),
        statistics=sums.statistics(),
        rejected=0,
        shards=tuple(entries),
        arrays=arrays,
    ).write(folder)
    return records
