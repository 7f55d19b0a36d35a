"""`dit-scale COMMAND`: the only place that knows every other."""

import argparse
import logging
import sys
import textwrap
from pathlib import Path

from dit_scale import __version__
from dit_scale.config import Config, EncodeConfig, describe, load_config
from dit_scale.distributed.runtime import World, die_with_parent
from dit_scale.errors import InputError
from dit_scale.training.preemption import StopRequest


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done or stopped on request, 2 bad input, anything else a failure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    rank = 0
    try:
        rank = World.from_environment().rank
        level = logging.WARNING if rank else logging.INFO
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        options.run(options)
    except InputError as error:
        where = f" (rank {rank})" if rank else ""
        print(f"dit-scale {options.command}{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dit-scale", description="Diffusion Transformers at scale.")
    parser.add_argument("--version", action="version", version=f"dit-scale {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_config_command(commands, "encode", "encode labelled images to shards of latents", EncodeConfig, _encode)
    _add_config_command(commands, "train", "train a model on shards of latents", Config, _train)
    _add_sample(commands)
    return parser


def _add_config_command(commands, name, text, schema, run) -> None:  # type: ignore[no-untyped-def]
    """Add a command that takes a YAML file and overrides, and lists all settings in its help."""
    command = commands.add_parser(
        name,
        help=text,
        description=textwrap.fill(text[0].upper() + text[1:] + "."),
        epilog="settings:\n" + describe(schema),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one in configs/")
    command.add_argument("overrides", metavar="key.sub=value", nargs="*", help="settings that win over the file's")
    command.set_defaults(run=run)


def _add_sample(commands) -> None:  # type: ignore[no-untyped-def]
    command = commands.add_parser("sample", help="draw images from a trained model", description="Draw images.")
    command.add_argument("path", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run folder or one of its step-…")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    command.add_argument("--num-samples", type=_positive, default=16, metavar="N", help="images (default %(default)s)")
    command.add_argument("--classes", default="", metavar="A,B", help="numbers or names, in turn; default: all")
    command.add_argument("--cfg-scale", type=float, default=1.0, metavar="S", help="guidance; 1 is none (default)")
    command.add_argument(
        "--guidance-channels", type=_positive, metavar="C", help="guide the first C channels (published DiT: 3); all"
    )
    command.add_argument("--solver", metavar="NAME", help="ddpm, ddim, euler, midpoint, heun; default: the objective's")
    command.add_argument("--num-sampling-steps", type=_positive, default=50, metavar="N", help="(default %(default)s)")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="(default %(default)s)")
    command.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="images at once a rank")
    command.add_argument("--weights", choices=("ema", "master"), default="ema", help="(default %(default)s)")
    command.add_argument("--decoder", metavar="NAME", help="another autoencoder's decoder: a hub name or a folder")
    command.set_defaults(run=_sample)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return int(text)


def _encode(options: argparse.Namespace) -> None:
    config = load_config(EncodeConfig, options.config, options.overrides)
    from preprocessing.encode import encode

    encode(config)


def _train(options: argparse.Namespace) -> None:
    stop = StopRequest().install()  # before torch: a signal in those seconds must not kill the task
    if World.from_environment().world_size > 1:
        die_with_parent()
    config = load_config(Config, options.config, options.overrides)
    from dit_scale.training.trainer import train

    train(config, stop)


def _sample(options: argparse.Namespace) -> None:
    from dit_scale.sampling import SamplingSettings, sample

    settings = SamplingSettings(
        options.solver, options.num_sampling_steps, options.cfg_scale, options.guidance_channels, options.seed
    )
    classes = [name.strip() for name in options.classes.split(",") if name.strip()]
    sample(
        options.path,
        options.out,
        options.num_samples,
        classes,
        settings,
        options.batch_size,
        options.weights,
        options.decoder,
    )
