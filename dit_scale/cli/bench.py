"""The commands that measure: bench step, sample, attention, feed, comm, data, encode, checkpoint, quality."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dit_scale.cli.arguments import new_file, number, numbers, positive, refuse_given
from dit_scale.config.fields import SEEDS
from dit_scale.config.typed import is_override
from dit_scale.errors import InputError

if TYPE_CHECKING:
    from dit_scale.config import Config


def add_commands(commands) -> None:  # type: ignore[no-untyped-def]
    """Add `bench` and its benchmarks to the parser."""
    text = "Measure parts of the system on this machine."
    command = commands.add_parser("bench", help="measure parts of the system", description=text)
    benchmarks = command.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    _add_bench_step(benchmarks)
    _add_bench_sample(benchmarks)
    _add_bench_attention(benchmarks)
    _add_bench_feed(benchmarks)
    _add_bench_comm(benchmarks)
    _add_bench_data(benchmarks)
    _add_bench_encode(benchmarks)
    _add_bench_checkpoint(benchmarks)
    _add_bench_quality(benchmarks)


def _add_bench_step(benchmarks) -> None:  # type: ignore[no-untyped-def]
    text = "A whole training step (forward, backward, update, EMA) under DeepSpeed, beside another code's."
    command = benchmarks.add_parser("step", help="a training step, beside a peer's", description=text)
    _add_network_settings(command, ", beside the same without routing")
    _add_model_options(command, batch_size=16)
    _add_peer(command)
    command.add_argument(
        "--without-deepspeed", action="store_true", help="our own step without DeepSpeed, too (fp32 alone)"
    )
    command.add_argument(
        "--checkpoint-every-blocks",
        type=number(int, at_least=0),
        default=0,
        metavar="K",
        help="activation checkpointing (default none)",
    )
    command.add_argument(
        "--activation-budget",
        type=number(float, at_least=0, at_most=1),
        default=1.0,
        metavar="PART",
        help="as engine.activation_budget (default 1)",
    )
    command.add_argument("--fp8", action="store_true", help="as engine.fp8")
    _add_kernels(command)
    _add_bench_options(command, rounds=5)
    command.set_defaults(run=_bench_step)


def _add_bench_sample(benchmarks) -> None:  # type: ignore[no-untyped-def]
    text = "DDIM with guidance, beside another code's, from the same weights and noise."
    command = benchmarks.add_parser("sample", help="sampling, beside a peer's", description=text)
    _add_network_settings(command)
    _add_model_options(command, batch_size=8)
    _add_peer(command)
    command.add_argument("--num-sampling-steps", type=positive, default=10, metavar="N", help="(default %(default)s)")
    command.add_argument(
        "--guide-by",
        action="append",
        default=[],
        metavar="NAME",
        help="guide by this weaker model, too, such as early, beside the null label; may be given several times",
    )
    _add_kernels(command)
    _add_bench_options(command, rounds=5)
    command.set_defaults(run=_bench_sample)


def _add_bench_attention(benchmarks) -> None:  # type: ignore[no-untyped-def]
    text = "Forward and backward of every attention kernel that runs here, on a model's shape."
    command = benchmarks.add_parser("attention", help="attention kernels", description=text)
    _add_model_options(command, batch_size=16)
    command.add_argument("--json", type=new_file, metavar="FILE", help="write the figures and where they come from")
    command.set_defaults(run=_bench_attention)


def _add_bench_feed(benchmarks) -> None:  # type: ignore[no-untyped-def]
    text = "Training steps fed from shards that are made here, beside steps on one batch in memory."
    command = benchmarks.add_parser("feed", help="steps from shards against one batch in memory", description=text)
    _add_model_options(command, batch_size=16)
    command.add_argument("--steps", type=positive, default=4, metavar="N", help="a round (default %(default)s)")
    _add_kernels(command)
    _add_bench_options(command, rounds=5)
    command.set_defaults(run=_bench_feed)


def _add_bench_comm(benchmarks) -> None:  # type: ignore[no-untyped-def]
    text = "What the ranks of a step tell each other: counted, beside what plan says; and all-reduces timed."
    command = benchmarks.add_parser("comm", help="communication of a step", description=text)
    _add_model_options(command, batch_size=16)
    command.add_argument(
        "--micro-batch-size", type=positive, default=8, metavar="N", help="of a rank (default %(default)s)"
    )
    command.add_argument(
        "--zero-stage",
        type=number(int, at_least=0, at_most=3),
        choices=(0, 1, 2, 3),
        default=1,
        help="(default %(default)s)",
    )
    _add_bench_options(command, rounds=5)
    command.set_defaults(run=_bench_comm)


def _add_model_options(command: argparse.ArgumentParser, batch_size: int) -> None:
    command.add_argument("--model", default="DiT-S/2", metavar="NAME", help="a preset (default %(default)s)")
    command.add_argument("--image-size", type=positive, default=256, metavar="PX", help="(default %(default)s)")
    command.add_argument("--batch-size", type=positive, default=batch_size, metavar="N", help="(default %(default)s)")
    command.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(default %(default)s)")
    command.add_argument("--compile", action="store_true", help="compile each block")


def _add_network_settings(command: argparse.ArgumentParser, more: str = "") -> None:
    command.add_argument(
        "settings",
        metavar="key.sub=value",
        nargs="*",
        help=f"model.… and routing.…, such as model.hidden_size=192 routing.ratio=0.5{more}",
    )


def _network_of(options: argparse.Namespace) -> "Config":
    """Return a configuration in which model and routing are what the options say."""
    from dit_scale.config import Config, load_config

    for word in options.settings:
        if not word.startswith(("model.", "routing.")):
            raise InputError(f"setting '{word}' has no place in a benchmark of the network; give model.… or routing.…")
    asked = [f"model.name={options.model}", *options.settings]
    return load_config(Config, None, ["run_dir=none", "data.path=none", *asked])


def _add_kernels(command: argparse.ArgumentParser) -> None:
    command.add_argument("--kernels", choices=("auto", "off"), default="auto", help="as engine.kernels (default auto)")


def _add_peer(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--peer-path",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a checkout of facebookresearch/DiT or fast-DiT, or benchmarks/plain; may be given several times",
    )
    command.add_argument(
        "--peer-precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of peers: fp32 (default; TF32 on a GPU), as they ship, or bf16 by autocast",
    )


def _add_bench_data(benchmarks) -> None:  # type: ignore[no-untyped-def]
    text = "Records a second and core of reading latents: ours, webdataset and StreamingDataLoader side by side."
    command = benchmarks.add_parser("data", help="reading latents, beside webdataset and streaming", description=text)
    command.add_argument("folder", type=Path, nargs="?", metavar="SHARDS", help="a folder of tars; default: made here")
    command.add_argument(
        "--records", type=positive, default=16384, metavar="N", help="to make, or to take (default %(default)s)"
    )
    command.add_argument(
        "--mirrors",
        choices=("none", "both"),
        help="both: records made here also hold their horizontal flips (default none)",
    )
    command.add_argument(
        "--crops", action="store_true", help="make crops beside the records, 197,632 bytes each, and read them, too"
    )
    _add_bench_options(command, rounds=7)
    command.set_defaults(run=_bench_data)


def _add_bench_encode(benchmarks) -> None:  # type: ignore[no-untyped-def]
    text = "Images a second of encoding, and what decoding, encoding and writing take, on images that are made here."
    command = benchmarks.add_parser("encode", help="encoding images", description=text)
    command.add_argument(
        "settings",
        metavar="[CONFIG] key.sub=value",
        nargs="*",
        help="encode's settings; default: 256 px, one process, a small convolutional autoencoder, then the PCA codec",
    )
    command.add_argument("--images", type=positive, default=64, metavar="N", help="(default %(default)s)")
    _add_bench_options(command, rounds=3)
    command.set_defaults(run=_bench_encode)


def _add_bench_checkpoint(benchmarks) -> None:  # type: ignore[no-untyped-def]
    text = "How long training stands still for a save: synchronous, and written in the background."
    command = benchmarks.add_parser("checkpoint", help="saving a checkpoint", description=text)
    command.add_argument("--model", default="DiT-B/2", metavar="NAME", help="a preset (default %(default)s: 130M)")
    command.add_argument(
        "--folder", type=Path, metavar="DIR", help="on the disk to measure; default: for temporary files"
    )
    command.add_argument("--steps", type=positive, default=4, metavar="N", help="after each save (default %(default)s)")
    _add_bench_options(command, rounds=3)
    command.set_defaults(run=_bench_checkpoint)


def _add_bench_quality(benchmarks) -> None:  # type: ignore[no-untyped-def]
    text = "How good samples are after how much compute: configurations trained in turn, several seeds of each."
    command = benchmarks.add_parser("quality", help="quality of samples for compute", description=text)
    command.add_argument(
        "words",
        metavar="CONFIG … key.sub=value",
        nargs="+",
        help="configurations of `train`, the first of which the others are compared with; settings win over all files'",
    )
    command.add_argument(
        "--seeds", type=numbers(int, **SEEDS), default=(0,), metavar="N,N,…", help="of each configuration (default 0)"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="for runs, curves and figures")
    command.add_argument("--ranks", type=positive, default=1, metavar="N", help="of each run (default %(default)s)")
    command.add_argument("--json", type=new_file, metavar="FILE", help="default: quality.json in DIR")
    command.set_defaults(run=_bench_quality)


def _add_bench_options(command: argparse.ArgumentParser, rounds: int) -> None:
    command.add_argument("--rounds", type=positive, default=rounds, metavar="K", help="(default %(default)s)")
    command.add_argument("--json", type=new_file, metavar="FILE", help="write the figures and where they come from")


def _bench_step(options: argparse.Namespace) -> None:
    from dit_scale.bench.peer import Peers
    from dit_scale.bench.step import bench_step
    from dit_scale.config import EngineConfig

    if options.without_deepspeed and options.precision != "fp32":
        raise InputError(f"--without-deepspeed has no master weights for {options.precision}; give --precision fp32")
    config = _network_of(options)
    if config.model.early_block:
        raise InputError(
            f"model.early_block={config.model.early_block} has no effect in bench step, which trains by the "
            f"objective's loss alone; leave it out"
        )
    engine = EngineConfig(
        zero_stage=1,
        precision=options.precision,
        compile=options.compile,
        checkpoint_every_blocks=options.checkpoint_every_blocks,
        activation_budget=options.activation_budget,
        fp8=options.fp8,
        kernels=options.kernels,
    )
    bench_step(
        config,
        options.image_size,
        options.batch_size,
        engine,
        Peers(options.peer_path, options.peer_precision),
        options.without_deepspeed,
        options.rounds,
        options.json,
    )


def _bench_sample(options: argparse.Namespace) -> None:
    from dit_scale.bench.peer import Peers
    from dit_scale.bench.sample import bench_sample
    from dit_scale.config import EngineConfig

    bench_sample(
        _network_of(options),
        options.image_size,
        options.batch_size,
        options.num_sampling_steps,
        EngineConfig(precision=options.precision, compile=options.compile, kernels=options.kernels),
        Peers(options.peer_path, options.peer_precision),
        [guide for guide in options.guide_by if guide != "null"],
        options.rounds,
        options.json,
    )


def _bench_attention(options: argparse.Namespace) -> None:
    from dit_scale.bench.attention import bench_attention
    from dit_scale.config import EngineConfig

    engine = EngineConfig(precision=options.precision, compile=options.compile)
    bench_attention(options.model, options.image_size, options.batch_size, engine, options.json)


def _bench_feed(options: argparse.Namespace) -> None:
    from dit_scale.bench.feed import bench_feed
    from dit_scale.config import EngineConfig

    if options.image_size != 256:
        raise InputError(f"--image-size {options.image_size} has no shards made for it; leave it at 256")
    engine = EngineConfig(precision=options.precision, compile=options.compile, kernels=options.kernels)
    bench_feed(options.model, options.batch_size, engine, options.steps, options.rounds, options.json)


def _bench_comm(options: argparse.Namespace) -> None:
    from dit_scale.bench.comm import bench_comm
    from dit_scale.config import EngineConfig

    engine = EngineConfig(zero_stage=options.zero_stage, precision=options.precision, compile=options.compile)
    bench_comm(
        options.model,
        options.image_size,
        options.batch_size,
        options.micro_batch_size,
        engine,
        options.rounds,
        options.json,
    )


def _bench_data(options: argparse.Namespace) -> None:
    from dit_scale.bench.data import bench_data

    if options.folder is not None:
        refuse_given(options, ("mirrors", "crops"), f"with '{options.folder}', which is there already")
    mirrors = 2 if options.mirrors == "both" else 1
    bench_data(options.folder, options.records, mirrors, options.rounds, options.json, options.crops)


def _bench_encode(options: argparse.Namespace) -> None:
    from dit_scale.bench.encode import bench_encode

    bench_encode(options.settings, options.images, options.rounds, options.json)


def _bench_checkpoint(options: argparse.Namespace) -> None:
    from dit_scale.bench.checkpoint import bench_checkpoint

    bench_checkpoint(options.model, options.folder, options.rounds, options.steps, options.json)


def _bench_quality(options: argparse.Namespace) -> None:
    from dit_scale.bench.quality import bench_quality

    overrides = [word for word in options.words if is_override(word)]
    configs = [word for word in options.words if not is_override(word)]
    if not configs:
        raise InputError("bench quality trains no configuration; give one or more files, or names of some in configs/")
    if len(set(options.seeds)) < len(options.seeds):
        raise InputError(f"--seeds {','.join(map(str, options.seeds))} holds a seed twice; give each once")
    bench_quality(configs, overrides, options.seeds, options.out, options.ranks, options.json)
