"""The command that looks ahead: plan."""

import argparse
import sys

from dit_scale.cli.arguments import add_config_command, new_file, number, positive, refuse_given
from dit_scale.config import Config, load_config
from dit_scale.errors import InputError


def add_commands(commands) -> None:  # type: ignore[no-untyped-def]
    """Add this family's commands to the parser."""
    text = "memory, communication, speed, days and cost of a training run on a cluster, by arithmetic"
    command = add_config_command(commands, "plan", text, Config, _plan)
    command.add_argument("--gpus", type=positive, required=True, metavar="N", help="GPUs in all")
    command.add_argument("--gpu", default="h100", metavar="KIND", help="a100, h100 (default), h200 or b200")
    command.add_argument("--gpus-per-node", type=positive, default=8, metavar="N", help="(default %(default)s)")
    command.add_argument(
        "--network",
        type=number(float, above=0),
        default=400.0,
        metavar="GBIT",
        help="Gbit/s a GPU between nodes (default %(default)g)",
    )
    command.add_argument(
        "--disk",
        type=number(float, above=0),
        default=2.0,
        metavar="GB",
        help="GB/s a node for checkpoints (default %(default)g)",
    )
    command.add_argument(
        "--price", type=number(float, at_least=0), default=2.0, metavar="X", help="of a GPU hour (default %(default)g)"
    )
    command.add_argument("--image-size", type=positive, metavar="PX", help="plan without data: 256, 512, …")
    command.add_argument("--channels", type=positive, metavar="C", help="of a latent, with --image-size (default 4)")
    command.add_argument("--classes", type=positive, metavar="K", help="with --image-size (default 1000)")
    command.add_argument("--search", action="store_true", help="try stages, micro batches and checkpointing")
    command.add_argument("--chart", type=new_file, metavar="PNG", help="draw scaling from 1 to 4096 GPUs")
    command.add_argument("--json", type=new_file, metavar="FILE", help="write all figures")


def _plan(options: argparse.Namespace) -> None:
    from dit_scale.planning.cluster import Cluster, gpu_named
    from dit_scale.planning.plan import Request, plan

    if options.image_size is None:
        refuse_given(options, ("channels", "classes"), "without --image-size, since the data says it")
    try:
        config = load_config(Config, options.config, [*options.overrides, *_places(options)])
    except InputError as error:
        if "data.path" in str(error):
            raise InputError(f"{error}, or give --image-size, such as 256, to plan without data") from None
        raise
    cluster = Cluster(
        gpu_named(options.gpu), options.gpus, options.gpus_per_node, options.network / 8 * 1e9, options.disk * 1e9
    )
    request = Request(
        options.image_size,
        options.channels or 4,
        options.classes or 1000,
        options.price,
        options.search,
        options.chart,
        options.json,
    )
    if not plan(config, cluster, request):
        sys.exit(2)


def _places(options: argparse.Namespace) -> list[str]:
    """Return values for what a plan needs not know and a configuration must have."""
    given = {word.partition("=")[0] for word in options.overrides}
    known = ["run_dir"] + (["data.path"] if options.image_size is not None else [])
    return [f"{key}=unused" for key in known if key not in given]
