"""The commands of the data layer: encode, verify, inspect, convert, index."""

import argparse
from pathlib import Path

from dit_scale.cli.arguments import add_config_command, new_file, number, numbers, positive, refuse_given
from dit_scale.config import EncodeConfig, load_config
from dit_scale.data.class_files import read_names
from dit_scale.errors import InputError


def add_commands(commands) -> None:  # type: ignore[no-untyped-def]
    """Add this family's commands to the parser."""
    add_config_command(commands, "encode", "encode labelled images to shards of latents", EncodeConfig, _encode)
    _add_verify(commands)
    _add_inspect(commands)
    _add_convert(commands)
    _add_index(commands)


def _add_verify(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Check every byte of a shard folder and name each damaged shard."
    command = commands.add_parser("verify", help="check shards, and make damaged ones again", description=text)
    command.add_argument("folder", type=Path, metavar="SHARDS", help="a shard folder")
    command.add_argument("--quick", action="store_true", help="sizes, sidecars and a few records a shard only")
    command.add_argument("--repair", action="store_true", help="encode damaged shards again")
    command.add_argument(
        "overrides", metavar="key.sub=value", nargs="*", help="for a repair: encode's settings, such as source.path=…"
    )
    command.set_defaults(run=_verify)


def _add_inspect(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Print what a shard folder holds and draw some of its records."
    command = commands.add_parser("inspect", help="a table and pictures of what shards hold", description=text)
    command.add_argument("folder", metavar="SHARDS", help="a shard folder, here or in object storage")
    command.add_argument(
        "--out", type=new_file, default=Path("inspect.png"), metavar="PNG", help="(default %(default)s)"
    )
    command.add_argument("--num-classes", type=positive, default=8, metavar="N", help="rows (default %(default)s)")
    command.add_argument("--images-per-class", type=positive, default=4, metavar="N", help="(default %(default)s)")
    command.add_argument("--cache", type=Path, metavar="DIR", help="for object storage; default: below $TMPDIR")
    command.set_defaults(run=_inspect)


def _add_convert(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Copy latents from tars to MDS (for object storage) or back, without encoding them again."
    command = commands.add_parser("convert", help="latents from tars to MDS or back", description=text)
    command.add_argument("folder", type=Path, metavar="SHARDS", help="a shard folder")
    command.add_argument("--to", choices=("mds", "tar"), required=True, help="what to write")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    command.set_defaults(run=_convert)


def _add_index(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Make webdataset tars of latents that others wrote a shard folder; they are read where they lie."
    command = commands.add_parser("index", help="make others' tars of latents readable", description=text)
    command.add_argument("folder", type=Path, metavar="TARS", help="folder of tars with KEY.npy and KEY.cls or .json")
    command.add_argument("--autoencoder", required=True, metavar="NAME", help="what made them: a hub name or a folder")
    command.add_argument(
        "--scale", type=numbers(above=0), metavar="S,…", help="latent scale; default: the autoencoder's"
    )
    command.add_argument("--shift", type=numbers(), metavar="S,…", help="latent shift; default: the autoencoder's")
    command.add_argument(
        "--stored-scale",
        type=number(float, above=0),
        default=1.0,
        metavar="S",
        help="what the stored latents were multiplied by",
    )
    command.add_argument("--class-names", type=Path, metavar="FILE", help="a name a line; default: numbers")
    command.add_argument("--member", default="npy", metavar="ENDING", help="of the arrays (default %(default)s)")
    command.add_argument(
        "--no-check-labels",
        action="store_true",
        help="take tars of several splits, and labels that count from 1",
    )
    command.set_defaults(run=_index)


def _encode(options: argparse.Namespace) -> None:
    config = load_config(EncodeConfig, options.config, options.overrides)
    from preprocessing.encode import encode

    encode(config)


def _verify(options: argparse.Namespace) -> None:
    from preprocessing.verify import verify

    if options.overrides and not options.repair:
        raise InputError(f"'{options.overrides[0]}' has no effect without --repair; leave it out, or give --repair")
    verify(options.folder, quick=options.quick, repair=options.repair, overrides=options.overrides)


def _inspect(options: argparse.Namespace) -> None:
    from preprocessing.inspect import inspect

    if "://" not in options.folder:
        refuse_given(options, ("cache",), f"with '{options.folder}', a folder of this machine")
    inspect(options.folder, options.out, options.num_classes, options.images_per_class, options.cache)


def _convert(options: argparse.Namespace) -> None:
    from dit_scale.data.mds import to_mds, to_tar

    (to_mds if options.to == "mds" else to_tar)(options.folder, options.out)


def _index(options: argparse.Namespace) -> None:
    from preprocessing.index import Description, index

    class_names = read_names(options.class_names, "--class-names") if options.class_names else None
    description = Description(
        options.autoencoder,
        options.scale,
        options.shift,
        options.stored_scale,
        class_names,
        options.member,
        check_labels=not options.no_check_labels,
    )
    index(options.folder, description)
