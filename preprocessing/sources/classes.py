"""Classes: their names, in the order of the labels."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from dit_scale.errors import InputError, nearest
from preprocessing.sources.names import to_bytes

_MOST_CLASSES = 1_000_000
_LONGEST_HINT = 200


def read_class_names(path: Path) -> list[str]:
    """Return class names in the order of a text file's lines, or of another shard folder's labels."""
    if path.is_dir() or path.name == "manifest.json":
        from dit_scale.data.manifest import read_manifest  # imports more than processes that decode need

        return list(read_manifest(path if path.is_dir() else path.parent).class_names)
    try:
        lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
    except OSError as error:
        raise InputError(
            f"source.class_names '{path}' cannot be read ({error.strerror}); give a text file with a name a line, or a "
            f"shard folder"
        ) from error
    names = [name for line in lines if (name := line.strip())]
    if not names:
        raise InputError(f"source.class_names '{path}' holds no name; write one a line")
    if twice := _first_double(names):
        raise InputError(f"source.class_names '{path}' holds '{twice}' twice; write each class once")
    return names


def order_classes(found: Iterable[str], given: list[str] | None, where: str) -> list[str]:
    """Return class names in the order of the labels: as given, where all that were found must be, or sorted.

    Names that are all whole numbers are sorted as numbers: 2 before 10.
    """
    if given is None:
        names = sorted(set(found), key=to_bytes)
        numbers = {name: number for name in names if (number := as_number(name)) is not None}
        return sorted(names, key=numbers.__getitem__) if len(numbers) == len(names) else names
    known = set(given)
    for name in found:
        if name not in known:
            raise InputError(f"class '{name}' of {where} is not in source.class_names{_hint(name, given)}")
    return given


def number_labels(labels: Sequence[str], given: list[str] | None, where: str) -> tuple[list[int], list[str]]:
    """Return labels as numbers, and the names of the classes.

    Labels that are all class names given are those; labels that are all numbers stay as they are; others are names.
    """
    found = set(labels)
    numbers = {label: number for label in found if (number := as_number(label)) is not None}
    is_named = found <= set(given) if given is not None else not numbers
    if not is_named and len(numbers) == len(found):
        return [numbers[label] for label in labels], name_numbers(max(numbers.values(), default=-1), given, where)
    if given is None and numbers:
        digits = next(label for label in labels if label in numbers)
        name = next(label for label in labels if label not in numbers)
        raise InputError(
            f"labels of {where} are numbers ('{digits}') and names ('{name}'); use one kind, or give source.class_names"
        )
    class_names = order_classes(dict.fromkeys(labels), given, where)
    places = {name: label for label, name in enumerate(class_names)}
    return [places[label] for label in labels], class_names


def name_numbers(highest: int, given: list[str] | None, where: str) -> list[str]:
    """Return the names of classes that are known by number: as given, else the numbers themselves as text."""
    if given is not None and highest >= len(given):
        raise InputError(
            f"label {highest} of {where} is beyond the {len(given)} names of source.class_names; labels count from 0"
        )
    if highest >= _MOST_CLASSES:
        raise InputError(f"label {highest} of {where} is no class number; number the classes 0, 1, 2, …")
    return given if given is not None else [str(label) for label in range(highest + 1)]


def as_number(text: str) -> int | None:
    """Return the class number that a text says, or None where it says something else."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _hint(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    if len(hint) <= _LONGEST_HINT:
        return hint
    return f"; it begins with {', '.join(islice(known, 3))}, …: add the class there, or take it out of the source"


def _first_double(names: list[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
