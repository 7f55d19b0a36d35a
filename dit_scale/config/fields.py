"""What a field says beside its default: the range of its numbers, and the choice that it goes with."""

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

Spell = Callable[[str], str]
"""What a user calls a key: the key itself, or an option of a command."""


@dataclass(frozen=True)
class Range:
    """Which numbers a field takes; each must be finite."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    or_zero: bool = False
    """0 is right, too: it switches something off."""

    def holds(self, number: float) -> bool:
        """Return whether a number is in range."""
        if not abs(number) <= sys.float_info.max:  # which NaN is not, either
            return False
        return (self.or_zero and number == 0) or (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        return ("0 or " if self.or_zero else "") + self._words("")

    def advice(self, noun: str) -> str:
        """Return what to give, such as ``a whole number of 1 or more``."""
        return ("0, or " if self.or_zero else "") + f"{noun} {self._words('of ')}".strip()

    def _words(self, of: str) -> str:
        low = self.at_least if self.at_least is not None else self.above
        high = self.at_most if self.at_most is not None else self.below
        if low is None and high is None:
            return ""
        if high is None:
            return f"above {short(low)}" if self.at_least is None else f"{of}{short(low)} or more"
        if low is None:
            return f"below {short(high)}" if self.at_most is None else f"{of}{short(high)} or less"
        left, right = "(" if self.at_least is None else "[", ")" if self.at_most is None else "]"
        return f"in {left}{short(low)}, {short(high)}{right}"


@dataclass(frozen=True)
class When:
    """The values of another field of the section with which a field has an effect."""

    name: str
    values: tuple[Any, ...] = ()
    """One of these; or, where there are none, any but the following."""
    but: tuple[Any, ...] = ()
    test: Callable[[Any], bool] | None = None
    """Instead of these lists: whether a value is one."""
    words: str = ""
    """What to give, where there is a test."""
    spared: tuple[Any, ...] = ()
    """Values of the field itself that have an effect whatever the other one is."""

    def holds(self, section: Any) -> bool:
        """Return whether the section's choice is among them."""
        value = getattr(section, self.name)
        if self.test is not None:
            return self.test(value)
        return value in self.values if self.values else value not in self.but

    def advice(self, name: str) -> str:
        """Return what to give, where the other field is called ``name``."""
        if self.words:
            return f"{name} {self.words}"
        if self.values:
            *rest, last = map(shown, self.values)
            return f"{name}={', '.join(rest)}{' or ' if rest else ''}{last}"
        return f"{name} above 0" if self.but == (0,) else f"another {name}"

    def __str__(self) -> str:
        return (
            self.advice(self.name)
            if self.words or self.values or self.but == (0,)
            else f"{self.name} not {' or '.join(map(shown, self.but))}"
        )


def when(name: str, *values: Any, spared: tuple[Any, ...] = ()) -> When:
    """Say that a field, but for its own values that are spared, has an effect with these values of another one."""
    return When(name, values, spared=spared)


def unless(name: str, *values: Any) -> When:
    """Say that a field has no effect with these values of another one of its section."""
    return When(name, but=values)


def when_true(name: str, test: Callable[[Any], bool], words: str) -> When:
    """Say that a field has an effect with the values of another one for which a test is true; ``words`` tell which."""
    return When(name, test=test, words=words)


def number(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    or_zero: bool = False,
    only_if: When | None = None,
    or_one: bool = False,
) -> Any:
    """Return a field of a number, or of numbers in a tuple or a dictionary, with the range of each.

    ``or_one`` lets one number stand for a tuple of it.
    """
    return _field(default, only_if, range=Range(at_least, above, at_most, below, or_zero), or_one=or_one)


SEEDS: dict[str, Any] = {"at_least": -(2**62), "at_most": 2**62}
"""The range of a seed: what every generator takes, sums with small numbers included."""


def setting(default: Any, *, only_if: When) -> Any:
    """Return a field without numbers that goes with a choice."""
    return _field(default, only_if)


def choice(default: str, *, retired: Mapping[str, str]) -> Any:
    """Return a field of a choice; ``retired`` names those of earlier versions, each with what stands for it today."""
    return _field(default, None, retired=retired)


def _field(default: Any, only_if: When | None, **metadata: Any) -> Any:
    if only_if is not None:
        metadata["only_if"] = only_if
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# ---------------------------------------------------------------- types of fields


def unwrap(kind: Any) -> tuple[Any, bool]:
    """Return a type without None, and whether it had it."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, kind is Any
    rest = [part for part in get_args(kind) if part is not type(None)]
    assert len(rest) == 1, f"{kind}: a setting has one type, or that and None"
    return rest[0], True


def element(kind: Any, place: int = 0) -> Any:
    """Return the type of a tuple's or a dictionary's values."""
    parts = get_args(kind)
    if get_origin(kind) is dict:
        return parts[1]
    return parts[0] if parts[-1] is Ellipsis else parts[min(place, len(parts) - 1)]


def noun_of(kind: Any) -> str:
    """Return what a user calls a value of this type."""
    kind, _ = unwrap(kind)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return f"a list of {'' if Ellipsis in parts else f'{len(parts)} '}{noun_of(parts[0]).split()[-1]}s"
    if get_origin(kind) is dict:
        return f"of the form {{name: {noun_of(element(kind))}, …}}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "a section")


def is_choice(kind: Any) -> bool:
    """Return whether a type is one of several values."""
    return get_origin(kind) is Literal


# ---------------------------------------------------------------- values


def numbers_in(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """Yield every number in a value, with the key under which it is found."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
    elif isinstance(value, tuple | list):
        for place, part in enumerate(value):
            yield from numbers_in(part, f"{key}[{place}]")
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from numbers_in(part, f"{key}.{name}")


def shown(value: Any) -> str:
    """Return a value as one writes it in a configuration."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shown(part)}" for name, part in value.items()) + "}"
    return str(value)


def short(number: float | None) -> str:
    """Return a bound in few characters."""
    assert number is not None
    exponent = abs(int(number)).bit_length() - 1
    if exponent >= 20 and abs(number) == 1 << exponent:
        return f"{'-' if number < 0 else ''}2^{exponent}"
    return f"{number:g}"
