"""Encode labelled images to shards of moments: who encodes which shard, and how one is made.

Shard ``i`` holds the images ``[i * S, (i + 1) * S)`` of the source, less those that cannot be decoded. It is made by
one process from start to end, in batches of one size, so the shards are the same for any number of encoders and
however often the work was killed and begun again.
"""

import errno
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from dit_scale.autoencoder import Autoencoder, from_uint8, load_autoencoder
from dit_scale.config import EncodeConfig
from dit_scale.data.manifest import Manifest, Transform
from dit_scale.data.record import MOMENTS_DTYPE
from dit_scale.data.shards import Record, shard_name, write_shard
from dit_scale.data.statistics import LatentSums, no_latents
from dit_scale.distributed.runtime import World, device_of, die_with_parent, set_threads
from dit_scale.errors import InputError
from dit_scale.files import atomic_write, remove
from preprocessing.decoding import Decoded, open_decoder
from preprocessing.job import Job, Receipt, Rejection
from preprocessing.planning import join, only_encoding, prepare
from preprocessing.progress import shown
from preprocessing.sources import list_source
from preprocessing.transforms import CENTRE_CROP
from preprocessing.workers import run_workers

LOG, REJECTED = "encode.jsonl", "rejected.jsonl"


def encode(config: EncodeConfig) -> Manifest | None:
    """Encode what is missing of the source's shards; return the manifest (None on ranks other than zero).

    Under a launcher every rank calls this; without one, ``config.workers`` processes share the work.
    """
    world = World.from_environment()
    if world.world_size > 1:
        die_with_parent()
    with _full_disk_explained(config):
        if world.is_rank_zero:
            return _lead(config, world)
        encode_part(config, world)
        return None


def _lead(config: EncodeConfig, world: World) -> Manifest:
    """Prepare the job, do rank zero's part of it or have it done, and write the manifest."""
    set_threads(world, 1)  # sums differ in their last bits with the number of threads
    source = list_source(config.source)
    with only_encoding(Path(config.output)):
        job = prepare(config, source)
        with shown(len(job.source), job.images_done):
            if world.world_size == 1 and config.workers > 1:
                run_workers(config.workers, encode_part, config)
            else:
                encode_part(config, world)
            receipts = _wait_for_all(job)
        return _finish(job, receipts)


def encode_part(config: EncodeConfig, world: World) -> None:
    """Make this rank's shards, every ``world_size``-th, that are not finished yet."""
    set_threads(world, 1)
    job = join(config)
    receipts = {number: job.receipt(number) for number in range(job.num_shards)}
    numbers = [n for n in range(world.rank, job.num_shards, world.world_size) if receipts[n] is None]
    if not numbers:
        return
    rejected = sum(len(receipt.rejected) for receipt in receipts.values() if receipt)
    device = device_of(world)
    autoencoder = load_autoencoder(
        job.plan["identity"], folder=job.output, device=device, precision=config.autoencoder.precision
    )
    indices = chain.from_iterable(job.images_of(number) for number in numbers)
    with open_decoder(job.source, config.image_size, config.decode_workers) as decoder:
        images = decoder.decode(indices)
        for number in numbers:
            started = time.monotonic()
            receipt = _ShardMaker(job, number, autoencoder, device, rejected).make(images)
            rejected += len(receipt.rejected)
            _log(job, receipt, world, time.monotonic() - started)


class _ShardMaker:
    """Turns decoded images into one shard's records."""

    def __init__(self, job: Job, number: int, autoencoder: Autoencoder, device: str, rejected_before: int):
        self._job, self._number = job, number
        self._autoencoder, self._device = autoencoder, device
        self._rejected_before = rejected_before
        self._rejected: list[Rejection] = []

    def make(self, images: Iterator[Decoded]) -> Receipt:
        """Write the shard from as many of the images as are its own, then its receipt."""
        job, number = self._job, self._number
        job.remove_leftovers(number)
        entry, sums = write_shard(job.output, shard_name(number), job.layout, self._records(images))
        receipt = Receipt(entry, sums, self._rejected)
        job.write_receipt(number, receipt)
        return receipt

    def _records(self, images: Iterator[Decoded]) -> Iterator[Record]:
        batch: list[tuple[int, np.ndarray]] = []
        indices = self._job.images_of(self._number)
        for index, image in zip(indices, islice(images, len(indices)), strict=True):
            if isinstance(image, str):
                self._reject(index, image)
                continue
            batch.append((index, image))
            if len(batch) == self._job.config.batch_size:
                yield from self._encode(batch)
                batch = []
        if batch:
            yield from self._encode(batch)

    def _encode(self, batch: list[tuple[int, np.ndarray]]) -> Iterator[Record]:
        """Encode a batch and its mirror images; a batch that is not full is filled up with its last image."""
        source, size = self._job.source, self._job.config.batch_size
        pixels = [image for _, image in batch] + [batch[-1][1]] * (size - len(batch))
        images = from_uint8(torch.from_numpy(np.stack(pixels)).to(self._device).movedim(-1, 1).contiguous())
        mirrors = [images, images.flip(-1)][: self._job.mirrors]
        moments = torch.stack([self._autoencoder.encode(mirror) for mirror in mirrors], dim=1)  # [N, M, 2C, h, w]
        stored = moments.half().cpu().numpy()
        for (index, _), record in zip(batch, stored, strict=False):
            if not np.isfinite(record).all():
                raise InputError(
                    f"the moments of image '{source.name(index)}' do not fit half precision; give another autoencoder, "
                    f"or autoencoder.precision=fp32"
                )
            yield Record(index, source.name(index), source.label(index), record)

    def _reject(self, index: int, reason: str) -> None:
        name, limit = self._job.source.name(index), self._job.config.max_rejected
        self._rejected.append(Rejection(index, name, reason))
        if self._rejected_before + len(self._rejected) > limit:
            raise InputError(_too_many(self._rejected_before + len(self._rejected), limit, self._rejected[0]))


def _too_many(count: int, limit: int, first: Rejection) -> str:
    return (
        f"image '{first.name}' cannot be decoded ({first.reason}), which makes {count} rejected images where "
        f"max_rejected={limit}; mend it, or give max_rejected={max(count, 2 * limit)} to leave such images out"
    )


def _log(job: Job, receipt: Receipt, world: World, seconds: float) -> None:
    images = receipt.entry.records + len(receipt.rejected)
    line = {
        "shard": receipt.entry.tar_name,
        "records": receipt.entry.records,
        "rejected": len(receipt.rejected),
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
        "rank": world.rank,
    }
    with (job.output / LOG).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _wait_for_all(job: Job, patience_seconds: float = 1800.0) -> list[Receipt]:
    """Return all receipts once other ranks have finished theirs, as long as there is any progress."""
    receipts: dict[int, Receipt] = {}
    done, deadline = -1, 0.0
    while True:
        for number in set(range(job.num_shards)) - receipts.keys():
            if receipt := job.receipt(number):
                receipts[number] = receipt
        if len(receipts) == job.num_shards:
            return [receipts[number] for number in range(job.num_shards)]
        if (now_done := job.images_done()) != done:
            done, deadline = now_done, time.monotonic() + patience_seconds
        if time.monotonic() > deadline:
            missing = min(set(range(job.num_shards)) - receipts.keys())
            raise TimeoutError(
                f"{shard_name(missing)} is unfinished, and no shard has grown for {patience_seconds:g} s; "
                f"run the same encode again, which makes what is missing"
            )
        time.sleep(1.0)


def _finish(job: Job, receipts: list[Receipt]) -> Manifest:
    """Write the list of rejected images and, where they are not too many, the manifest."""
    rejected = [rejection for receipt in receipts for rejection in receipt.rejected]
    _write_rejected(job.output / REJECTED, rejected)
    if len(rejected) > job.config.max_rejected:
        raise InputError(_too_many(len(rejected), job.config.max_rejected, rejected[0]))
    sums: LatentSums = sum(
        (receipt.sums for receipt in receipts), no_latents(job.latents.channels, job.latents.size**2)
    )
    if sums.count == 0:
        raise InputError(
            f"none of the {len(rejected)} images of '{job.config.source.path}' can be decoded; give others"
        )
    manifest = Manifest(
        latents=job.latents,
        mirrors=job.mirrors,
        dtype=MOMENTS_DTYPE.name,
        record_stride_bytes=job.layout.stride_bytes,
        autoencoder=job.plan["identity"],
        transform=Transform(CENTRE_CROP, job.config.image_size),
        class_names=tuple(job.source.class_names),
        statistics=sums.statistics(),
        rejected=len(rejected),
        shards=tuple(receipt.entry for receipt in receipts),
    )
    manifest.write(job.output)
    print(
        f"{manifest.num_records} records of {len(manifest.class_names)} classes in {len(manifest.shards)} shards "
        f"in {job.output}, fingerprint {manifest.fingerprint[:12]}",
        file=sys.stderr,
        flush=True,
    )
    return manifest


def _write_rejected(path: Path, rejected: list[Rejection]) -> None:
    if not rejected:
        remove(path)
        return
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(asdict(rejection)) + "\n" for rejection in rejected)


@contextmanager
def _full_disk_explained(config: EncodeConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"output '{config.output}' has no room left ({error.strerror}); make some and run this again, "
            f"which goes on with what is missing"
        ) from error
