"""What several commands' arguments have in common."""

import argparse
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dit_scale.config import describe
from dit_scale.config.fields import Range, noun_of
from dit_scale.errors import InputError


def add_config_command(commands, name, text, schema, run) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
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
    return command


def number(kind: type[int] | type[float], **limits: Any) -> Callable[[str], Any]:
    """Return what reads a number in a range, given as a field's in the configuration."""
    accepted = Range(**limits)

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accepted.holds(value):
            raise argparse.ArgumentTypeError(f"'{text}' is not {accepted.advice(noun_of(kind))}")
        return value

    read.limits = accepted  # type: ignore[attr-defined]
    return read


positive = number(int, at_least=1)
"""Read a whole number above 0."""


def numbers(kind: type[int] | type[float] = float, **limits: Any) -> Callable[[str], tuple[Any, ...]]:
    """Return what reads numbers parted by commas, each in a range."""
    one = number(kind, **limits)

    def read(text: str) -> tuple[Any, ...]:
        return tuple(map(one, text.split(",")))

    read.limits = one.limits  # type: ignore[attr-defined]
    return read


def new_file(text: str) -> Path:
    """Read the path of a file that will be written."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is a folder; give the path of a file")
    return Path(text)


def refuse_given(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raise InputError for the first of these options that was given; their defaults must be None, False or empty."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False and value != []:
            written = "" if value is True else f" {value}"
            raise InputError(f"--{name.replace('_', '-')}{written} has no effect {why}; leave it out")
