"""The commands of what a model makes: sample."""

import argparse
from pathlib import Path

from dit_scale.cli.arguments import number, positive, refuse_given
from dit_scale.config import SampleConfig, add_options, read_options_of
from dit_scale.distributed.runtime import World, die_with_parent


def add_commands(commands) -> None:  # type: ignore[no-untyped-def]
    """Add this family's commands to the parser."""
    _add_sample(commands)


def _add_sample(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Draw images from a trained model; begun again, only those that are missing."
    command = commands.add_parser("sample", help="draw images from a trained model", description=text)
    command.add_argument("path", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run folder or one of its step-…")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    command.add_argument("--num-samples", type=positive, default=16, metavar="N", help="images (default %(default)s)")
    command.add_argument("--classes", default="", metavar="A,B", help="numbers or names, in turn; default: all")
    command.add_argument(
        "--class",
        dest="class_names",
        action="append",
        default=[],
        metavar="NAME",
        help="one more class, by a name that may hold commas or be a number; may be given several times",
    )
    command.add_argument("--random-classes", action="store_true", help="draw each image's class, not in turn")
    command.add_argument(
        "--weights",
        default="ema",
        metavar="KIND",
        help="ema (default), ema-DECAY of train.extra_ema_decays, post-hoc-WIDTH of train.power_ema_widths, or master",
    )
    command.add_argument("--decoder", metavar="NAME", help="another autoencoder's decoder: a hub name or a folder")
    command.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(default %(default)s)")
    command.add_argument("--compile", action="store_true", help="compile blocks: a minute at first, then faster")
    command.add_argument("--kernels", choices=("auto", "off"), default="auto", help="as engine.kernels (default auto)")
    command.add_argument("--batch-size", type=positive, metavar="N", help="images at once a rank (default 32)")
    add_options(command.add_argument_group("from noise to latent"), SampleConfig)
    _add_outputs(command)
    command.set_defaults(run=_sample)


def _add_outputs(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what is written beside the PNGs")
    group.add_argument("--npz", action="store_true", help="samples.npz, as ADM's evaluator reads it")
    group.add_argument(
        "--frames",
        type=number(int, at_least=0),
        metavar="N",
        help="frames.png: N pictures of the way from noise",
    )
    group.add_argument(
        "--grid-over",
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="only sheet.png: the images under each value, such as cfg-scale=1,1.5,4; a second one makes the rows",
    )
    group.add_argument("--overwrite", action="store_true", help="remove the folder's images of other settings")


def _sample(options: argparse.Namespace) -> None:
    if World.from_environment().world_size > 1:
        die_with_parent()
    from dit_scale.sampling import SamplingSettings
    from dit_scale.sampling.job import Request, sample, start
    from dit_scale.sampling.sheet import draw_sheet, parse_axis

    axes = [parse_axis(text) for text in options.grid_over]
    config = read_options_of(SampleConfig, options, are_all="cfg-scale" not in [axis.name for axis in axes])
    settings = SamplingSettings.of(config, config.seed)
    if axes:
        refuse_given(options, ("batch_size", "npz", "frames", "overwrite"), "with --grid-over, which writes one sheet")
    words = [word.strip() for word in options.classes.split(",") if word.strip()]
    how = (options.precision, options.compile, options.kernels)
    sampler, world = start(options.path, options.weights, options.decoder, *how)
    classes = sampler.classes_asked_for(words, options.class_names)
    if axes:
        labels = sampler.labels_of(classes, options.num_samples, config.seed if options.random_classes else None)
        draw_sheet(sampler, settings, labels, axes, options.out, world)
        return
    request = Request(
        options.out,
        options.num_samples,
        classes,
        options.random_classes,
        options.batch_size or 32,
        options.npz,
        options.frames or 0,
        options.overwrite,
    )
    sample(sampler, settings, request, world)
