"""The commands of a training run: train, doctor, status, report, submit."""

import argparse
import sys
from pathlib import Path

from dit_scale.cli.arguments import add_config_command, new_file, positive, refuse_given
from dit_scale.config import Config, load_config
from dit_scale.distributed.runtime import World, die_with_parent, max_restarts
from dit_scale.errors import InputError
from dit_scale.supervision.preemption import StopRequest


def add_commands(commands) -> None:  # type: ignore[no-untyped-def]
    """Add this family's commands to the parser."""
    command = add_config_command(commands, "train", "train a model on shards of latents", Config, _train)
    command.add_argument(
        "--stop-after",
        type=positive,
        metavar="STEP",
        help="stop after this step, saved; the learning rate still follows train.steps, and the same command goes on",
    )
    _add_doctor(commands)
    _add_status(commands)
    _add_report(commands)
    _add_submit(commands)


def _add_doctor(commands) -> None:  # type: ignore[no-untyped-def]
    text = "check all that a training run needs, before it starts, on the ranks that it will have"
    command = add_config_command(commands, "doctor", text, Config, _doctor)
    command.add_argument("--json", type=new_file, metavar="FILE", help="write the findings there, too")


def _add_status(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Say where a run stands: running or not and where, last good save, rate, why it last stopped."
    command = commands.add_parser("status", help="where a run stands", description=text)
    command.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder")
    command.add_argument("--json", action="store_true", help="the same for programs")
    command.add_argument(
        "--requeue", action="store_true", help="for launchers: exit status 0 if the run should start again, 3 if not"
    )
    limits = command.add_argument_group("with --requeue")
    limits.add_argument("--max-restarts", type=positive, metavar="N", help="$DIT_SCALE_MAX_RESTARTS, or 100")
    limits.add_argument("--max-without-progress", type=positive, metavar="N", help="starts at one step (default 3)")
    limits.add_argument("--max-hangs", type=positive, metavar="N", help="hangs in a row (default 3)")
    command.set_defaults(run=_status)


def _add_submit(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Hand Slurm a chain of jobs, encode -> train -> sample, each beginning when the one before has succeeded."
    command = commands.add_parser("submit", help="encode, train and sample as Slurm jobs", description=text)
    command.add_argument("chain", metavar="CHAIN", help="a YAML file, or the name of one in configs/")
    command.add_argument("overrides", metavar="key.sub=value", nargs="*", help="such as paths.run=runs/b sample=null")
    command.add_argument("--dry-run", action="store_true", help="ask Slurm whether it would take them, submit nothing")
    command.set_defaults(run=_submit)


def _train(options: argparse.Namespace) -> None:
    stop = StopRequest(options.stop_after).install()  # before torch: a signal in those seconds must not kill the task
    if World.from_environment().world_size > 1:
        die_with_parent()
    config = load_config(Config, options.config, options.overrides)
    from dit_scale.training.job import train

    train(config, stop)


def _add_report(commands) -> None:  # type: ignore[no-untyped-def]
    text = "Write a run's own page: one HTML file that needs no network; also while the run goes on."
    command = commands.add_parser("report", help="a run's own page", description=text)
    command.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder")
    command.add_argument("--out", type=new_file, metavar="FILE", help="default: report.html in the run folder")
    command.set_defaults(run=_report)


def _doctor(options: argparse.Namespace) -> None:
    if World.from_environment().world_size > 1:
        die_with_parent()
    config = load_config(Config, options.config, options.overrides)
    from dit_scale.doctor import doctor

    if not doctor(config, options.json):
        sys.exit(2)


def _status(options: argparse.Namespace) -> None:
    from dit_scale.jobs.requeue import Limits
    from dit_scale.jobs.status import requeue, status

    if options.requeue:
        refuse_given(options, ("json",), "with --requeue")
        restarts = options.max_restarts or max_restarts()
        requeue(options.run_dir, Limits(restarts, options.max_without_progress or 3, options.max_hangs or 3))
    else:
        refuse_given(options, ("max_restarts", "max_without_progress", "max_hangs"), "without --requeue")
        status(options.run_dir, as_json=options.json)


def _report(options: argparse.Namespace) -> None:
    from dit_scale.report import write_report

    out = options.out or options.run_dir / "report.html"
    if out.is_dir():
        raise InputError(f"'{out}' is a folder; move it, or give another path with --out FILE")
    write_report(options.run_dir, out)
    print(f"{out}, {out.stat().st_size / 1e6:.1f} MB")


def _submit(options: argparse.Namespace) -> None:
    from dit_scale.jobs.submit import submit

    submit(options.chain, options.overrides, dry_run=options.dry_run)
