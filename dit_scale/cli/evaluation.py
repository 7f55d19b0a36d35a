"""The command that judges what a model makes: evaluate."""

import argparse
from pathlib import Path

from dit_scale.cli.arguments import new_file, positive


def add_commands(commands) -> None:  # type: ignore[no-untyped-def]
    """Add this family's commands to the parser."""
    _add_evaluate(commands)


def _add_evaluate(commands) -> None:  # type: ignore[no-untyped-def]
    text = (
        "Compare samples with real images: FID, sFID, KID, Inception Score, precision and recall with Inception's "
        "weights; without them, distances of another network under names of their own."
    )
    command = commands.add_parser("evaluate", help="how good samples are: FID and others", description=text)
    command.add_argument(
        "samples", type=Path, metavar="SAMPLES", help="what dit-scale sample wrote, a folder of images, or an .npz"
    )
    command.add_argument(
        "reference",
        type=Path,
        metavar="REFERENCE",
        help="real images: a folder, an .npz, or stored statistics (.npz, .pt)",
    )
    command.add_argument(
        "--features", metavar="NAME", help="inception (default where --weights is given) or efficientnet-lite0"
    )
    command.add_argument(
        "--weights", type=Path, metavar="FILE", help="Inception's: weights-inception-2015-12-05-6726825d.pth"
    )
    command.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images at once (%(default)s)")
    command.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="for references; default: below $XDG_CACHE_HOME or ~/.cache",
    )
    command.add_argument(
        "--out", type=new_file, metavar="FILE", help="the result; default: evaluation.json by the images"
    )
    command.add_argument("--against", type=Path, metavar="OLD", help="an earlier result; print what has changed")
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from dit_scale.evaluation.job import evaluate

    evaluate(
        options.samples,
        options.reference,
        options.features,
        options.weights,
        options.batch_size,
        options.cache,
        options.out,
        options.against,
    )
