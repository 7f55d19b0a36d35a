"""The end of an encoding: the list of rejected images and, once every shard is there, the manifest."""

import json
import sys
from dataclasses import asdict, replace

from dit_scale.classes import ClassNames
from dit_scale.data.manifest import Manifest, StoredArray, Transform
from dit_scale.data.statistics import LatentStatistics, LatentSums, no_latents
from dit_scale.errors import InputError
from dit_scale.files import atomic_write, remove
from dit_scale.latents import LatentSpec
from preprocessing.job import Job, Receipt, Rejection
from preprocessing.sources.summary import plural

REJECTED = "rejected.jsonl"


def finish(job: Job) -> Manifest | None:
    """Write the manifest if all shards are finished; whoever finds them so does it, and all write the same."""
    receipts = [job.receipt(number) for number in range(job.num_shards)]
    if any(receipt is None for receipt in receipts):
        return None
    whole = [receipt for receipt in receipts if receipt is not None]
    _settle_rejected(job, whole)
    sums: LatentSums = sum((receipt.sums for receipt in whole), no_latents(job.latents.channels, job.latents.size**2))
    if sums.count == 0:
        raise InputError(
            f"none of the {len(job.source)} images of '{job.config.source.path}' can be decoded; give others"
        )
    manifest = _manifest(job, whole, sums.statistics())
    manifest.write(job.output)
    print(
        f"{plural(manifest.num_records, 'record')} of {plural(len(manifest.class_names), 'class', 'classes')} in "
        f"{plural(len(manifest.shards), 'shard')} in {job.output}, {plural(manifest.rejected, 'image')} rejected, "
        f"fingerprint {manifest.fingerprint[:12]}",
        file=sys.stderr,
        flush=True,
    )
    return manifest


def too_many_rejected(count: int, limit: int, last: Rejection) -> str:
    """Return the sentence for more rejected images than the limit."""
    return (
        f"image '{last.name}' cannot be decoded ({last.reason}), which makes {count} rejected images where "
        f"max_rejected={limit}; fix it, or give max_rejected={max(count, 2 * limit)} to leave such images out"
    )


def _manifest(job: Job, receipts: list[Receipt], statistics: LatentStatistics) -> Manifest:
    return Manifest(
        latents=_measured(job.latents, statistics) if job.config.autoencoder.measure_scale else job.latents,
        mirrors=job.mirrors,
        container="tar",
        stored=StoredArray(),
        autoencoder=job.plan["identity"],
        transform=Transform(job.plan["transform"], job.config.image_size),
        class_names=ClassNames(job.source.class_names),
        statistics=statistics,
        rejected=sum(len(receipt.rejected) for receipt in receipts),
        shards=tuple(receipt.entry for receipt in receipts),
        arrays=job.layout.arrays,
    )


def _measured(latents: LatentSpec, statistics: LatentStatistics) -> LatentSpec:
    """Return the scale and shift, per channel, that give the latents mean 0 and deviation 1."""
    if min(statistics.std) < 1e-6:
        raise InputError(
            "a latent channel is the same in all images, so no scale can be measured; give autoencoder.scale"
        )
    return replace(latents, scale=tuple(1.0 / std for std in statistics.std), shift=statistics.mean)


def _settle_rejected(job: Job, receipts: list[Receipt]) -> None:
    """Write down which images were rejected; too many end the encoding, and are tried again by the next one."""
    rejected = [rejection for receipt in receipts for rejection in receipt.rejected]
    path = job.output / REJECTED
    if not rejected:
        remove(path)
        return
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(asdict(rejection)) + "\n" for rejection in rejected)
    if len(rejected) > job.config.max_rejected:
        for number, receipt in enumerate(receipts):
            if receipt.rejected:
                job.discard(number)
        raise InputError(too_many_rejected(len(rejected), job.config.max_rejected, rejected[0]))
