"""The commands of weights in the formats of others: export, import."""

import argparse
from pathlib import Path

from dit_scale.cli.arguments import numbers, positive
from dit_scale.data.class_files import read_names


def add_commands(commands) -> None:  # type: ignore[no-untyped-def]
    """Add this family's commands to the parser."""
    _add_export(commands)
    _add_import(commands)


def _add_export(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Write a trained model's weights as the published samplers, or diffusers, load them."
    command = commands.add_parser("export", help="weights to .pt, .safetensors or diffusers", description=text)
    command.add_argument("path", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run folder or one of its step-…")
    command.add_argument(
        "--to", choices=("pt", "safetensors", "diffusers"), required=True, help="diffusers: a whole DiTPipeline folder"
    )
    command.add_argument("--out", type=Path, required=True, metavar="PATH", help="file, or folder, to write")
    command.add_argument("--weights", default="ema", metavar="KIND", help="ema (default), master, … as in sample")
    command.add_argument(
        "--keep-projectors", action="store_true", help="write those of alignment, too, as REPA has them"
    )
    command.set_defaults(run=_export)


def _add_import(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Make a run folder of published weights; it can be sampled at once, and trained from with init_from=PATH."
    command = commands.add_parser("import", help="published weights to a run folder", description=text)
    command.add_argument("weights", type=Path, metavar="WEIGHTS", help="a .pt, a .safetensors, a DiTPipeline folder")
    command.add_argument("--out", type=Path, required=True, metavar="PATH", help="run folder to write")
    of_gaussian = "with gaussian; not for a folder, which says it itself"
    command.add_argument(
        "--objective",
        choices=("gaussian", "flow"),
        help="default: LightningDiT's, REPA's, RAE's by their names, or gaussian",
    )
    command.add_argument(
        "--time-at-data",
        type=int,
        choices=(1, 0),
        help="of flow: what the network is told at the data, 1 (SiT, LightningDiT) or 0 (REPA, RAE), where names do "
        "not tell",
    )
    command.add_argument("--schedule", choices=("linear", "cosine"), help=f"default linear; {of_gaussian}")
    command.add_argument("--prediction", choices=("epsilon", "v", "x0"), help=f"default epsilon; {of_gaussian}")
    command.add_argument(
        "--autoencoder", metavar="NAME", help="hub name or folder; default: the folder's, or stabilityai/sd-vae-ft-ema"
    )
    command.add_argument(
        "--latent-scale",
        type=numbers(above=0),
        metavar="S,…",
        help="one number, or one a channel; default: the autoencoder's",
    )
    command.add_argument(
        "--latent-statistics",
        type=Path,
        metavar="FILE",
        help="mean and std a channel instead, such as LightningDiT's latents_stats.pt",
    )
    command.add_argument("--class-names", type=Path, metavar="FILE", help="a name a line; default: numbers")
    command.add_argument(
        "--num-heads",
        type=positive,
        metavar="N",
        help="attention heads of a file that does not tell; default: a preset's",
    )
    command.add_argument(
        "--rope", choices=("true", "false"), help="whether queries and keys are rotated, of a file without feat_rope"
    )
    command.add_argument(
        "--latent-size", type=positive, metavar="N", help="side of the latent; only for weights without pos_embed"
    )
    command.add_argument(
        "--keep-projectors",
        action="store_true",
        default=None,
        help="keep REPA's projectors, to train on with alignment",
    )
    command.set_defaults(run=_import)


def _export(options: argparse.Namespace) -> None:
    from dit_scale.interop.exporting import export

    export(options.path, options.out, options.to, options.weights, options.keep_projectors)


def _import(options: argparse.Namespace) -> None:
    from dit_scale.interop.importing import Unsaid, import_weights

    unsaid = Unsaid(
        objective=options.objective,
        time_at_data=options.time_at_data,
        schedule=options.schedule,
        prediction=options.prediction,
        autoencoder=options.autoencoder,
        latent_scale=options.latent_scale,
        latent_statistics=options.latent_statistics,
        class_names=None if options.class_names is None else read_names(options.class_names, "--class-names"),
        num_heads=options.num_heads,
        rope=None if options.rope is None else options.rope == "true",
        latent_size=options.latent_size,
        keep_projectors=options.keep_projectors,
    )
    import_weights(options.weights, options.out, unsaid)
