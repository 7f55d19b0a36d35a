"""Whether settings can be right: numbers in range, keys with an effect, and rules between fields."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any, TypeVar

from dit_scale.config.fields import Range, Spell, When, noun_of, numbers_in, shown, unwrap
from dit_scale.errors import InputError

T = TypeVar("T")


def check_values(config: Any, spell: Spell = str) -> None:
    """Raise InputError for a number out of its field's range, or an empty text."""
    for section, key in sections(config):
        for entry in fields(section):
            value, where = getattr(section, entry.name), f"{key}{entry.name}"
            if value == "" and entry.default != "":
                raise InputError(f"{spell(where)}= is empty; give text{', or null' if unwrap(entry.type)[1] else ''}")
            limits: Range | None = entry.metadata.get("range")
            for place, number in numbers_in(value, where) if limits is not None else ():
                if not limits.holds(number):  # type: ignore[union-attr]
                    raise _out_of_range(spell(place), number, entry, limits)  # type: ignore[arg-type]


def check_together(config: Any, spell: Spell = str) -> None:
    """Raise InputError where settings do not fit each other, as each section knows of its own."""
    for section, key in sections(config):
        if hasattr(section, "check_together"):
            section.check_together(lambda name, key=key: spell(f"{key}{name}"))


def sections(config: Any, prefix: str = "") -> Iterator[tuple[Any, str]]:
    """Yield a section and those in it, each with what stands before its fields' names."""
    yield config, prefix
    for entry in fields(config):
        if is_dataclass(value := getattr(config, entry.name)):
            yield from sections(value, f"{prefix}{entry.name}.")


def check_used(config: T, given: Mapping[str, int], prefix: str = "", spell: Spell = str) -> T:
    """Return settings without those that have no effect, which become their defaults.

    ``given`` says in which place each key was given: 1 the file, 2 the command line, 0 nowhere. Raises InputError where
    a key that has no effect was given beside, or after, the choice that makes it so, whatever its value; a later choice
    drops it.
    """
    places, choices = dict(given), dict(given)
    while found := next(_unused(config, places, choices, prefix), None):
        section, key, entry, condition = found
        name, place = key + entry.name, choices.get(key + condition.name, 0)
        if places.pop(name, 0) >= max(1, place):
            raise _without_effect(section, key, entry, condition, spell)
        choices[name] = place  # what goes with this one was given before the choice, too
        config = _with_default(config, name.removeprefix(prefix).split("."))
    return config


def used(config: T) -> T:
    """Return settings in which what has no effect is its default."""
    return check_used(config, {})


def refuse_unused(section: Any, key: str) -> None:
    """Raise InputError where a section, made without a file, holds what has no effect in it."""
    prefix = f"{key}."
    check_used(section, dict.fromkeys(changed(section, prefix), 1), prefix)


def changed(section: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of a section's fields, and of those in it, that are not at their defaults."""
    return [
        f"{key}{entry.name}"
        for part, key in sections(section, prefix)
        for entry in fields(part)
        if getattr(part, entry.name) != _default(entry)
    ]


def unused_names(section: Any) -> set[str]:
    """Return the names of a section's fields that have no effect with its choices, whatever their values."""
    return {entry.name for entry in fields(section) for _ in _broken(section, entry)}


def _unused(
    config: Any, places: Mapping[str, int], choices: Mapping[str, int], prefix: str
) -> Iterator[tuple[Any, str, Field[Any], When]]:
    """Yield what has no effect and was given beside or after the choice, or is not at its default."""
    for section, key in sections(config, prefix):
        for entry in fields(section):
            for condition in _broken(section, entry):
                is_given = places.get(key + entry.name, 0) >= max(1, choices.get(key + condition.name, 0))
                if is_given or getattr(section, entry.name) != _default(entry):
                    yield section, key, entry, condition


def _broken(section: Any, entry: Field[Any]) -> Iterator[When]:
    """Yield the conditions of a field that do not hold: its own, and its section's."""
    for condition in (entry.metadata.get("only_if"), getattr(section, "only_if", None)):
        if condition is None or condition.name == entry.name or getattr(section, entry.name) in condition.spared:
            continue
        if not condition.holds(section):
            yield condition


def _default(entry: Field[Any]) -> Any:
    return entry.default_factory() if callable(entry.default_factory) else entry.default


def _with_default(config: Any, names: list[str]) -> Any:
    name, *rest = names
    if rest:
        return replace(config, **{name: _with_default(getattr(config, name), rest)})
    entry = next(entry for entry in fields(config) if entry.name == name)
    return replace(config, **{name: _default(entry)})


def _without_effect(section: Any, key: str, entry: Field[Any], condition: When, spell: Spell) -> InputError:
    value, choice = shown(getattr(section, entry.name)), shown(getattr(section, condition.name))
    controller = spell(f"{key}{condition.name}")
    return InputError(
        f"{spell(f'{key}{entry.name}')}={value} has no effect with {controller}={choice}; leave it out, or give "
        f"{condition.advice(controller)}"
    )


def _out_of_range(key: str, number: float, entry: Field[Any], limits: Range) -> InputError:
    kind, is_optional = unwrap(entry.type)
    what = "is not a number" if number != number else "is not finite" if abs(number) == math.inf else "is out of range"
    advice = limits.advice(noun_of(int if "int" in str(kind) else float))
    null = ", or null" if is_optional and kind in (int, float) else ""
    return InputError(f"{key}={shown(number)} {what}; give {advice}{null}")
