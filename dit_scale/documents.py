"""JSON that is read back: what it must be is a type, and what is something else is refused in words of JSON's own."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from dit_scale.errors import InputError

T = TypeVar("T")

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
_LONGEST_EXCERPT = 40


class Misfit(ValueError):
    """JSON that is not what it must be: what was expected, and what was found."""


def parsed(content: bytes | str, shape: type[T]) -> T:
    """Return a JSON document as ``shape`` says it must be, or raise Misfit.

    A shape is a dataclass (all its keys and no other), a TypedDict (others may be there), ``list[int]``,
    ``tuple[str, ...]``, ``dict[str, Any]``, ``Literal["a"]``, ``str | None`` and so on; numbers stay as written.
    """
    try:
        value = json.loads(content)
    except UnicodeDecodeError as error:
        raise Misfit("expected JSON, found bytes that are not UTF-8 text") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in error.doc else ""
        where = f"text that is not, from {line}column {error.colno} on" if content else "an empty file"
        raise Misfit(f"expected JSON, found {where}") from error
    except (RecursionError, ValueError) as error:
        raise Misfit("expected JSON, found too many digits, or brackets within too many others") from error
    return cast(T, fitted(value, shape))


def parsed_or_none(content: bytes | str, shape: type[T]) -> T | None:
    """Return a JSON document as ``parsed`` does, or None where it is another: a line that a kill has torn, …"""
    try:
        return parsed(content, shape)
    except Misfit:
        return None


def read_document(path: Path, shape: type[T], what: str, fix: str) -> T:
    """Return the JSON of a file as ``parsed`` does; raises InputError that says it is not ``what``, and the ``fix``."""
    try:
        return parsed(path.read_bytes(), shape)
    except Misfit as misfit:
        raise InputError(f"'{path}' is not {what}: {misfit}; {fix}") from misfit
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); {fix}") from error


def fitted(value: Any, shape: Any, name: str = "") -> Any:
    """Return a value that JSON gave as ``shape`` (see ``parsed``), or raise Misfit; ``name`` is where it stood."""
    kind, arguments = get_origin(shape) or shape, get_args(shape)
    if kind is Any:
        return value
    if kind in (Union, UnionType):
        return _one_of(value, arguments, shape, name)
    if kind is Literal:
        return value if _is_plain(value) and value in arguments else _refuse(value, shape, name)
    if _is_list(kind):
        if not isinstance(value, list):
            _refuse(value, shape, name)
        arguments = arguments or get_args(kind.__orig_bases__[0])  # of a class of its own, such as ClassNames
        assert len(arguments) == 1 or arguments[1] is ..., f"{shape} has a fixed length, which is not checked"
        return kind(fitted(entry, arguments[0], _below(name, index)) for index, entry in enumerate(value))
    if kind is dict or is_dataclass(kind) or is_typeddict(kind):
        return _object(value, kind, arguments, name)
    is_right = isinstance(value, int | float if kind is float else kind) and (kind is bool) == isinstance(value, bool)
    return value if is_right else _refuse(value, shape, name)


def _one_of(value: Any, shapes: tuple[Any, ...], shape: Any, name: str) -> Any:
    if value is None and NoneType in shapes:
        return None
    others = [one for one in shapes if one is not NoneType]
    if len(others) == 1 and isinstance(value, list | dict):  # whose own fault says more
        return fitted(value, others[0], name)
    for one in others:
        try:
            return fitted(value, one, name)
        except Misfit:
            continue
    _refuse(value, shape, name)


def _object(value: Any, kind: Any, arguments: tuple[Any, ...], name: str) -> Any:
    if not isinstance(value, dict):
        _refuse(value, kind, name)
    if kind is dict:
        return {key: fitted(entry, arguments[1], _below(name, key)) for key, entry in value.items()}
    hints = _hints_of(kind)
    needed = kind.__required_keys__ if is_typeddict(kind) else {field.name for field in fields(kind) if _is_bare(field)}
    if missing := [key for key in hints if key in needed and key not in value]:
        found = f"only {_listed(value)}" if value else "an empty object"
        raise Misfit(f"expected the key '{_below(name, missing[0])}', found {found}")
    if is_typeddict(kind):
        return value | {key: fitted(value[key], hints[key], _below(name, key)) for key in hints if key in value}
    if unknown := [key for key in value if key not in hints]:
        raise Misfit(f"found the key '{_below(name, unknown[0])}', which does not belong there")
    values = {key: fitted(entry, hints[key], _below(name, key)) for key, entry in value.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise Misfit(f"found that in {_quoted(name)} {error}") from error


@lru_cache(maxsize=64)
def _hints_of(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _quoted(name: str) -> str:
    return f"'{name}'" if name else "it"


def _is_bare(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _is_list(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, list | tuple)


def _refuse(value: Any, shape: Any, name: str) -> Any:
    where = f"'{name}' to be " if name else ""
    raise Misfit(f"expected {where}{_named(shape)}, found {_found(value)}")


def _named(shape: Any) -> str:
    kind, arguments = get_origin(shape) or shape, get_args(shape)
    if kind in (Union, UnionType):
        return " or ".join(_named(one) for one in arguments)
    if kind is Literal:
        return " or ".join(f"'{one}'" for one in arguments)
    return _NAMES.get(kind) or ("a list" if _is_list(kind) else "an object with keys")


def _found(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return f"an object with {_listed(value)}" if value else "an empty object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_EXCERPT else f"{text[:_LONGEST_EXCERPT]}…"


def _listed(value: dict[str, Any]) -> str:
    return ", ".join(f"'{key[:_LONGEST_EXCERPT]}'" for key in list(value)[:3]) + (", …" if len(value) > 3 else "")


def _below(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
