"""What several commands' arguments have in common."""

import argparse
import textwrap

from dit_scale.config import describe


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


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return int(text)


def floats(text: str) -> tuple[float, ...]:
    """Read numbers parted by commas."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 0.18215") from None
