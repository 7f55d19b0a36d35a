"""Classes: their names in the order of the labels. Labels decide; several classes may have one name."""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from dit_scale.errors import InputError, few, nearest

log = logging.getLogger(__name__)


class ClassNames(tuple[str, ...]):
    """Names in the order of the labels; equal names are different classes (ImageNet's 134 and 517 are "crane")."""

    def asked_for(self, numbers_or_names: Iterable[str], only_names: Iterable[str] = ()) -> list[int]:
        """Return the labels that a user asks for; raises InputError where one is asked for twice."""
        asked = [(text, self.label_of(text)) for text in numbers_or_names]
        asked += [(name, self.label_named(name)) for name in only_names]
        for label, times in Counter(label for _, label in asked).items():
            if times > 1:
                same = few(f"'{text}'" for text, other in asked if other == label)
                raise InputError(f"classes {same} mean one label, {label}; give each class once")
        return [label for _, label in asked]

    def label_of(self, text: str) -> int:
        """Return the label that a number or a name means; a number below their count is that label, always.

        Raises InputError where it is neither, or a name of several classes.
        """
        number, named = as_number(text), self.labels_named(text)
        if number is None or (named and text != str(number)):  # a folder called 007 is named, not counted
            return self.label_named(text)
        others = [label for label in named if label != number]
        if number >= len(self):
            fix = f"it is the name of {in_words(others)}: give that" if others else f"give 0 to {len(self) - 1}"
            raise InputError(f"class {text} is not a number below {len(self)}, how many classes there are; {fix}")
        if others:
            log.info("class %s is taken as label %s; the name '%s' has %s", text, text, text, in_words(others))
        return number

    def label_named(self, name: str) -> int:
        """Return the label of the class with this name; raises InputError where there is none, or several."""
        found = self.labels_named(name)
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"'{name}' is the name of {in_words(found)}; give the number")
        if (number := as_number(name)) is not None and number < len(self):
            raise InputError(f"no class is named '{name}'; --classes {number} takes label {number}")
        hint = nearest(name, self._by_name)
        more = " --class takes a name with a comma" if "," in hint and "did you mean" in hint else ""
        raise InputError(f"no class is named '{name}'{hint}{more}")

    def labels_named(self, name: str) -> list[int]:
        """Return the labels of the classes with this name, or else with this as the first of several, comma apart."""
        return self._by_name.get(name) or self._by_first_name.get(name, [])

    def title(self, label: int) -> str:
        """Return the name of a label, with the label behind it where another class has the same name."""
        name = self[label]
        return name if len(self._by_name[name]) == 1 else f"{name} ({label})"

    def twice(self) -> dict[str, list[int]]:
        """Return the names that several classes have, each with its labels."""
        return {name: labels for name, labels in self._by_name.items() if len(labels) > 1}

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        return _grouped(self)

    @cached_property
    def _by_first_name(self) -> dict[str, list[int]]:
        return _grouped(name.partition(",")[0].strip() for name in self)


def as_number(text: str) -> int | None:
    """Return the class number that a text says, or None where it says something else."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _grouped(names: Iterable[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        groups.setdefault(name, []).append(label)
    return groups


def in_words(labels: list[int]) -> str:
    """Say some labels: label 3, or labels 134 and 517."""
    if len(labels) == 2:
        return f"labels {labels[0]} and {labels[1]}"
    return f"label{'s' if len(labels) > 1 else ''} {few(map(str, labels))}"
