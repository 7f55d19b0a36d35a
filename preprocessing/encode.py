"""Encode labelled images to shards of moments: who makes which shard.

Shard ``i`` holds the images ``[i * S, (i + 1) * S)`` of the source, less those that cannot be decoded. It is made by
one process from start to end, in batches of one size, so the shards are the same for any number of encoders and
however often the work was killed and begun again. Encoders know of each other by their files alone: two that make
the same shard make the same bytes, and the later one finds it finished.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice, tee

from dit_scale.autoencoder import load_autoencoder
from dit_scale.config import EncodeConfig
from dit_scale.data.manifest import Manifest
from dit_scale.data.shards import Record, shard_name, write_shard
from dit_scale.distributed.runtime import World, array_element, device_of, die_with_parent, set_threads
from dit_scale.errors import InputError
from dit_scale.files import full_disk_explained
from dit_scale.prefetch import Prefetch
from dit_scale.progress import shown
from preprocessing.finishing import finish, too_many_rejected
from preprocessing.job import Job, Receipt, Rejection
from preprocessing.pipeline import Encoder, Result
from preprocessing.planning import decoder_for, join, prepare
from preprocessing.sources import summary
from preprocessing.workers import run_workers

LOG = "encode.jsonl"
_RESULTS_AHEAD = 256


def encode(config: EncodeConfig) -> Manifest | None:
    """Encode what is missing of the source's shards; return the manifest, or None where another process writes it.

    Under a launcher every rank calls this, in a Slurm array those of every element; without one, ``config.workers``
    processes share the work.
    """
    world = World.from_environment()
    if world.world_size > 1:
        die_with_parent()
    with full_disk_explained(config.output, name="output"):
        if world.is_rank_zero:
            return _lead(config, world)
        encode_part(config, world)
        if array_element().count > 1:  # rank zero does not wait
            return finish(join(config))
        return None


def _lead(config: EncodeConfig, world: World) -> Manifest | None:
    """Prepare the job, do this process's part of it or have it done, and write the manifest once all is there."""
    set_threads(world, 1)  # sums differ in their last bits with the number of threads
    job = prepare(config)
    print(summary(job.source), file=sys.stderr, flush=True)
    with shown("encoded", len(job.source), job.images_done):
        while missing := job.missing():
            if job.unclaimed():
                _work(config, world)
            elif array_element().count > 1:
                break
            else:
                time.sleep(1.0)  # other ranks are at them
    if missing:
        print(
            f"{len(missing)} shards are being made by other elements of the array; the last to end writes the manifest",
            file=sys.stderr,
            flush=True,
        )
        return None
    return finish(job)


def _work(config: EncodeConfig, world: World) -> None:
    if world.world_size == 1 and config.workers > 1:
        run_workers(config.workers, encode_part, config)
    else:
        encode_part(config, world)


def encode_part(config: EncodeConfig, world: World) -> None:
    """Make this process's share of the missing shards, then any that nobody has begun."""
    set_threads(world, 1)
    job = join(config)
    if not job.missing():
        return
    element = array_element()
    shards = _shards(job, element.index * world.world_size + world.rank, element.count * world.world_size)
    lock = threading.Lock()
    for_decoding, for_encoding, for_writing = (_one_at_a_time(branch, lock) for branch in tee(shards, 3))
    device = device_of(world)
    autoencoder = load_autoencoder(
        job.plan["identity"], folder=job.output, device=device, precision=config.autoencoder.precision
    )
    if config.autoencoder.compile:
        autoencoder.compile()
    rejected = job.count_rejected()
    # Left in this order: decoders are ended first, since one that hangs in storage would hold up what waits for it.
    with ExitStack() as after_decoders, decoder_for(config, job.source) as decoder:
        images = decoder.decode(chain.from_iterable(job.images_of(number) for number in for_decoding))
        encoder = Encoder(job, autoencoder, device)
        after_decoders.callback(encoder.close)
        results = encoder.results(for_encoding, images)
        ready = Prefetch(results, _RESULTS_AHEAD, "ahead")  # encodes while this thread writes
        after_decoders.callback(ready.close)
        for number in for_writing:
            started = time.monotonic()
            receipt = _make(job, number, ready, rejected)
            rejected += len(receipt.rejected)
            _log(job, receipt, world, time.monotonic() - started)


def _shards(job: Job, worker: int, num_workers: int) -> Iterator[int]:
    """Yield this worker's share of the shards that are missing now, then any others that nobody is at."""
    taken: set[int] = set()
    for number in job.missing()[worker::num_workers]:
        if job.is_unclaimed(number):  # another worker may be helping
            taken.add(number)
            yield number
    while unclaimed := [number for number in job.unclaimed() if number not in taken]:
        number = unclaimed[worker * len(unclaimed) // num_workers]  # apart from the others who look now
        taken.add(number)
        yield number


def _one_at_a_time(branch: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    """Yield a tee's numbers: threads that ask its branches at one moment would get a RuntimeError."""
    while True:
        with lock:
            number = next(branch, None)
        if number is None:
            return
        yield number


def _make(job: Job, number: int, results: Iterator[Result], rejected_before: int) -> Receipt:
    """Write a shard from as many results as are its own, then its receipt."""
    rejected: list[Rejection] = []
    mine = islice(results, len(job.images_of(number)))
    try:
        entry, sums = write_shard(
            job.output, shard_name(number), job.layout, _records(job, mine, rejected, rejected_before), job.crops
        )
        receipt = Receipt(entry, sums, rejected)
        job.write_receipt(number, receipt)
    except FileNotFoundError:
        finished = job.receipt(number)
        if finished is None:
            raise
        return finished  # another worker finished it and cleared up, what this one had begun, too
    return receipt


def _records(job: Job, results: Iterator[Result], rejected: list[Rejection], rejected_before: int) -> Iterator[Record]:
    """Yield the records among the results; the others are kept in ``rejected``, up to the limit."""
    limit = job.config.max_rejected
    for result in results:
        if isinstance(result, Record):
            yield result
            continue
        rejected.append(result)
        if rejected_before + len(rejected) > limit:
            raise InputError(too_many_rejected(rejected_before + len(rejected), limit, rejected[-1]))


def _log(job: Job, receipt: Receipt, world: World, seconds: float) -> None:
    images = receipt.entry.records + len(receipt.rejected)
    line = {
        "shard": receipt.entry.file,
        "records": receipt.entry.records,
        "rejected": len(receipt.rejected),
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
        "element": array_element().index,
        "rank": world.rank,
    }
    with (job.output / LOG).open("a") as file:
        file.write(json.dumps(line) + "\n")
