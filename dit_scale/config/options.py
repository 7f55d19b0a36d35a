"""A section's settings as options of a command: their defaults, ranges and sentences are the section's."""

import argparse
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_origin

from dit_scale.config.describing import sentence, takes
from dit_scale.config.fields import shown, unwrap
from dit_scale.config.loading import load_options
from dit_scale.errors import InputError

T = TypeVar("T")


def add_options(command: Any, schema: type) -> None:
    """Add an option for each field: numbers of a tuple parted by commas, entries of a dictionary one at a time."""
    for entry in fields(schema):
        default = "" if entry.default in (None, MISSING) else f"default {_written(entry.default)}"
        words = [sentence(schema, entry.name).rstrip("."), takes(entry), default]
        is_dict = get_origin(unwrap(entry.type)[0]) is dict
        command.add_argument(
            _flag(f"{entry.name}." if is_dict else entry.name).strip(),
            dest=entry.name,
            action="append" if is_dict else "store",
            metavar=_metavar(unwrap(entry.type)[0]),
            help="; ".join(filter(None, words)),
        )


def read_options_of(schema: type[T], options: argparse.Namespace, *, are_all: bool = True) -> T:
    """Return the section that the options say; raises InputError, which names them.

    ``are_all`` says that nothing else is chosen elsewhere, so that what has no effect is refused, too.
    """
    given: dict[str, Any] = {}
    for entry in fields(schema):  # type: ignore[arg-type]
        value, kind = getattr(options, entry.name), get_origin(unwrap(entry.type)[0])
        if value is not None and kind is dict:
            given[entry.name] = _pairs(value, _flag(f"{entry.name}."))
        elif value is not None:
            given[entry.name] = value.strip("[]").split(",") if kind is tuple else value
    return load_options(schema, given, _flag, are_all=are_all)


def _flag(key: str) -> str:
    """Return what a key is called on the command line; an entry of a dictionary is given to its own option."""
    name, dot, entry = key.partition(".")
    option = f"--{name.replace('_', '-')}"
    return f"{option.removesuffix('s')} {entry}" if dot else option


def _pairs(texts: list[str], flag: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, value = _pair(text, flag)
        if name in found:
            raise InputError(f"{flag}{name} is given twice, as {found[name]} and as {value}; give it once")
        found[name] = value
    return found


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{flag}{text} is not of the form NAME=X; write it like {flag}eta=1")
    return name.strip().replace("-", "_"), value


def _metavar(kind: Any) -> str:
    return {int: "N", float: "X", str: "NAME", dict: "NAME=X", tuple: "A,B"}[get_origin(kind) or kind]


def _written(value: Any) -> str:
    """Return a default as the option takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else shown(value)
