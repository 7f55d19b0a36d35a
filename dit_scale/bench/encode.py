"""`dit-scale bench encode`: images a second through the encoding pipeline, and what each of its stages takes."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from dit_scale.autoencoder import Autoencoder, load_autoencoder
from dit_scale.bench.images import write_images
from dit_scale.bench.measure import Cost, Spread, in_rounds, one_thread
from dit_scale.bench.report import begin_report, show, show_table, write_report
from dit_scale.config import EncodeConfig, load_config, resolved
from dit_scale.data.shards import Record, shard_name, write_shard
from dit_scale.distributed.runtime import World, device_of
from dit_scale.errors import InputError
from dit_scale.weights import from_diffusers
from preprocessing.decoding import Decoded
from preprocessing.encode import encode_part
from preprocessing.job import Job
from preprocessing.pipeline import Encoder
from preprocessing.planning import decoder_for, prepare
from preprocessing.workers import run_workers

DECODING, ENCODING, WRITING, WHOLE = "decoding and cropping", "encoding", "writing", "all of it"
_STAGES = (DECODING, ENCODING, WRITING)
_PACKAGES = ("dit_scale", "torch", "diffusers", "numpy", "pillow")
_SMALL_WIDTHS = (16, 32, 64, 64)
"""An eighth of Stable Diffusion's, so that a CPU is done in a minute."""


def bench_encode(settings: list[str], num_images: int, rounds: int, json_path: Path | None) -> dict[str, Any]:
    """Measure encoding as configured, on synthetic images; print, write and return the figures.

    Where no autoencoder is configured, a small convolutional one and the PCA codec are measured, in one process.
    """
    origin = begin_report("encode", _PACKAGES, json_path)
    with tempfile.TemporaryDirectory(prefix="dit-scale-bench-") as temporary, one_thread():
        folder = Path(temporary)
        configs = _configs(settings, folder)
        num_bytes = write_images(folder / "images", num_images)
        results = [_measure(config, name, folder / "writing" / name, rounds) for name, config in configs.items()]
    measured = {"images": num_images, "image_bytes": round(num_bytes / num_images), "rounds": rounds}
    report = origin | {"settings": measured, "autoencoders": results}
    show(report)
    for result in results:
        _show(result, measured)
    write_report(report, json_path)
    return report


def _configs(settings: list[str], folder: Path) -> dict[str, EncodeConfig]:
    """Return what is measured, by name; source and output are the benchmark's own."""
    path = settings[0] if settings and "=" not in settings[0] else None
    overrides = settings[1:] if path else settings
    for override in overrides:
        if override.split("=")[0] in ("source.path", "output"):
            raise InputError(f"'{override}' has no place here: images and output are the benchmark's own; leave it out")

    def load(name: str, *more: str) -> EncodeConfig:
        own = [f"source.path={folder / 'images'}", f"output={folder / 'output' / name}"]
        return load_config(EncodeConfig, path, [*more, *overrides, *own])

    if path or any(override.startswith("autoencoder.name=") for override in overrides):
        return {"configured": load("configured")}
    return {
        "small-kl": load("small-kl", "decode_workers=0", f"autoencoder.name={_write_small_kl(folder / 'small-kl')}"),
        "pca": load("pca", "decode_workers=0", "autoencoder.name=pca"),
    }


def _write_small_kl(folder: Path) -> Path:
    """Write an AutoencoderKL of Stable Diffusion's architecture, but narrow and with random weights."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        from_diffusers("AutoencoderKL")(
            block_out_channels=_SMALL_WIDTHS,
            down_block_types=("DownEncoderBlock2D",) * len(_SMALL_WIDTHS),
            up_block_types=("UpDecoderBlock2D",) * len(_SMALL_WIDTHS),
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=16,
        ).save_pretrained(folder)
    return folder


def _measure(config: EncodeConfig, name: str, writing: Path, rounds: int) -> dict[str, Any]:
    """Measure each stage alone over all images, in this process, and the whole pipeline as configured."""
    world = World()
    job = prepare(config)
    device = device_of(world)
    autoencoder = load_autoencoder(
        job.plan["identity"], folder=job.output, device=device, precision=config.autoencoder.precision
    )
    if config.autoencoder.compile:
        autoencoder.compile()
    actions = _stages(job, autoencoder, device, writing) | {WHOLE: lambda: _encode_again(job, world)}
    costs = in_rounds(actions, rounds)
    return {
        "name": name,
        "autoencoder": job.plan["identity"],
        "device": device,
        "config": resolved(config),
        "images_per_second": vars(Spread.of([len(job.source) / cost.wall_seconds for cost in costs[WHOLE]])),
        "images_per_cpu_second": vars(Spread.of([len(job.source) / cost.cpu_seconds for cost in costs[WHOLE]])),
        "stages": {stage: _result(costs[stage], len(job.source)) for stage in costs},
    }


def _stages(job: Job, autoencoder: Autoencoder, device: str, writing: Path) -> dict[str, Callable[[], object]]:
    """Return the stages, each of which begins with what the one before has made of all images."""
    alone = replace(job.config, decode_workers=0)

    def decode() -> list[Decoded]:
        with decoder_for(alone, job.source) as decoder:
            return list(decoder.decode(range(len(job.source))))

    images = decode()
    results = list(Encoder(job, autoencoder, device).results(range(job.num_shards), iter(images)))
    records = [result for result in results if isinstance(result, Record)]
    writing.mkdir(parents=True)

    def write() -> None:
        left = iter(records)
        for number in range(job.num_shards):
            mine = islice(left, len(job.images_of(number)))
            write_shard(writing, shard_name(number), job.layout, mine, job.crops)

    return {
        DECODING: decode,
        ENCODING: lambda: _exhaust(Encoder(job, autoencoder, device).results(range(job.num_shards), iter(images))),
        WRITING: write,
    }


def _encode_again(job: Job, world: World) -> None:
    """Run the pipeline as `dit-scale encode` does once the source is listed and the autoencoder is there."""
    for number in range(job.num_shards):
        job.discard(number)
    if job.config.workers > 1:
        run_workers(job.config.workers, encode_part, job.config)
    else:
        encode_part(job.config, world)


def _exhaust(items: Iterable[object]) -> None:
    deque(items, maxlen=0)


def _result(costs: list[Cost], num_images: int) -> dict[str, Any]:
    return {
        "cpu_seconds": [round(cost.cpu_seconds, 4) for cost in costs],
        "wall_seconds": [round(cost.wall_seconds, 4) for cost in costs],
        "cpu_milliseconds_per_image": 1e3 * Spread.of([cost.cpu_seconds for cost in costs]).median / num_images,
    }


def _show(result: dict[str, Any], measured: dict[str, Any]) -> None:
    config, identity, stages = result["config"], result["autoencoder"], result["stages"]
    costs = {stage: stages[stage]["cpu_milliseconds_per_image"] for stage in stages}
    total = sum(costs[stage] for stage in _STAGES)
    rows = [[stage, f"{costs[stage]:.2f}", f"{costs[stage] / total:.1%}"] for stage in _STAGES]
    show_table(
        f"{identity['kind']} '{identity['name']}' on {result['device']}, {config['autoencoder']['precision']}, "
        f"{config['image_size']} px, mirrors {config['mirrors']}, {config['workers']} workers, "
        f"{config['decode_workers']} decode_workers, {measured['images']} JPEGs of {measured['image_bytes']:,} bytes, "
        f"medians of {measured['rounds']} rounds: {Spread(**result['images_per_second'])} images/s, "
        f"{Spread(**result['images_per_cpu_second'])} images a CPU second",
        ["stage", "CPU ms/image", "share"],
        [*rows, [WHOLE, f"{costs[WHOLE]:.2f}", ""]],
    )
