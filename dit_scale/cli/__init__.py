"""`dit-scale COMMAND`: the only place that knows every other; one module for each family of commands."""

import argparse
import logging
import sys

from dit_scale import __version__
from dit_scale.cli import bench, data, evaluation, interchange, planning, runs, samples
from dit_scale.cli.arguments import number
from dit_scale.distributed.runtime import World, take_local_rank
from dit_scale.errors import Failure, InputError
from dit_scale.versions import untested


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done or stopped on request, 2 bad input, 1 or anything else a failure."""
    options = _parsed(arguments)
    rank = 0
    logging.raiseExceptions = False  # a log that has no room is no error, and wandb's would flood the console with it
    try:
        take_local_rank(options.local_rank)
        rank = World.from_environment().rank
        level = logging.WARNING if rank else logging.INFO
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        if rank == 0:
            _warn_of_untested()
        options.run(options)
    except (InputError, Failure) as error:
        where = f" (rank {rank})" if rank else ""
        print(f"dit-scale {options.command}{where}: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _warn_of_untested() -> None:
    """Say at the start, in one sentence, which packages are of versions that nobody has tried."""
    if phrases := untested():
        fix = "in a checkout: uv pip install -c constraints.txt -e ."
        logging.getLogger("dit_scale").warning("%s; results may be wrong. %s", ", ".join(phrases), fix)


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Parse; settings may also follow options, which argparse by itself does not take."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if wrong := [word for word in rest if "=" not in word or word.startswith("-") or "overrides" not in options]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dit-scale", description="Diffusion Transformers at scale.")
    parser.add_argument("--version", action="version", version=f"dit-scale {__version__}")
    parser.add_argument(
        "--local_rank", "--local-rank", type=number(int, at_least=0), help=argparse.SUPPRESS
    )  # DeepSpeed's launcher gives it
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for family in (data, planning, runs, samples, evaluation, interchange, bench):
        family.add_commands(commands)
    return parser
