"""What several commands' arguments have in common."""

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

from dit_scale.config import describe
from dit_scale.config.fields import Range, noun_of


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

    return read


positive = number(int, at_least=1)
"""Read a whole number above 0."""


def floats(text: str) -> tuple[float, ...]:
    """Read numbers parted by commas."""
    return tuple(map(number(float), text.split(",")))


def floats_above_zero(text: str) -> tuple[float, ...]:
    """Read numbers above 0 parted by commas."""
    return tuple(map(number(float, above=0), text.split(",")))
