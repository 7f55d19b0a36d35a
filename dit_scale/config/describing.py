"""What the settings are, for the help of commands."""

import ast
import inspect
import textwrap
from dataclasses import MISSING as NONE
from dataclasses import Field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, get_args

from omegaconf import MISSING

from dit_scale.config.fields import is_choice, shown, unwrap


@cache
def describe(schema: type, prefix: str = "") -> str:
    """Return every setting with its default, what it takes and its sentence, for ``--help``."""
    lines = []
    for entry in fields(schema):
        if is_dataclass(entry.type):
            lines.append(describe(entry.type, f"{prefix}{entry.name}."))  # type: ignore[arg-type]
        else:
            lines.append(f"  {prefix}{entry.name}{_default(entry)}{_takes(schema, entry)}")
            lines.append(f"      {sentence(schema, entry.name)}")
    return "\n".join(lines)


def sentence(schema: type, name: str) -> str:
    """Return the sentence beneath a field, from the source of the class, or of a base of it, that has the field."""
    for kind in schema.__mro__:
        if is_dataclass(kind) and (found := _sentences(kind).get(name)):
            return found
    return ""


def takes(entry: Field[Any]) -> str:
    """Return which values a field takes, in few words; nothing where its default shows it."""
    kind, _ = unwrap(entry.type)
    if is_choice(kind):
        return f"one of {', '.join(map(str, get_args(kind)))}"
    limits = str(entry.metadata.get("range", ""))
    of = "weights " if kind is Any else "" if kind in (int, float) else "each "
    return limits and of + limits


def _takes(schema: type, entry: Field[Any]) -> str:
    condition = entry.metadata.get("only_if")
    words = [takes(entry), f"with {condition}" if condition else ""]
    text = "; ".join(filter(None, words))
    return f"  ({text})" if text else ""


def _default(entry: Field[Any]) -> str:
    value = entry.default if entry.default_factory is NONE else entry.default_factory()
    return "" if value == MISSING else f"={shown(value)}"


@cache
def _sentences(schema: type) -> dict[str, str]:
    """Read the sentence beneath each field from the class's source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0].body  # type: ignore[attr-defined]
    found = {}
    for entry, following in pairwise(body):
        if isinstance(entry, ast.AnnAssign) and isinstance(following, ast.Expr):
            found[entry.target.id] = following.value.value  # type: ignore
    return found
