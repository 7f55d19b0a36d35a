"""Classes: their names, in the order of the labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dit_scale.classes import ClassNames, as_number, in_words
from dit_scale.data.class_files import read_names
from dit_scale.errors import InputError, few, nearest
from preprocessing.sources.names import to_bytes

_MOST_CLASSES = 1_000_000


def read_class_names(path: Path) -> ClassNames:
    """Return class names in the order of a text file's lines, or of another shard folder's labels."""
    if path.is_dir() or path.name == "manifest.json":
        from dit_scale.data.manifest import read_manifest  # imports more than processes that decode need

        return read_manifest(path if path.is_dir() else path.parent).class_names
    return read_names(path, "source.class_names", "surrogateescape", ", or a shard folder")


def order_classes(
    found: Iterable[str], given: ClassNames | None, where: str, is_empty: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """Return class names in the order of the labels: as given, where each that was found must be once, or sorted.

    Names that are all whole numbers are sorted as numbers: 2 before 10. Others that are empty come behind them.
    """
    if given is None:
        names = sorted(set(found), key=to_bytes)
        numbers = {name: number for name in names if (number := as_number(name)) is not None}
        others = [name for name in names if name not in numbers]
        return sorted(numbers, key=numbers.__getitem__) + others if numbers and all(map(is_empty, others)) else names
    known, twice = set(given), given.twice()
    for name in found:
        if name in twice:
            raise InputError(
                f"class '{name}' of {where} is the name of {in_words(twice[name])} in source.class_names; "
                f"give each label a name of its own there, and the images' classes the same names"
            )
        if name not in known:
            raise InputError(f"class '{name}' of {where} is not in source.class_names{_hint(name, given)}")
    return list(given)


def number_labels(labels: Sequence[str], given: ClassNames | None, where: str) -> tuple[list[int], list[str]]:
    """Return labels as numbers, and the names of the classes.

    Labels that are all class names given are those; labels that are all numbers stay as they are; others are names.
    Raises InputError where they are both, and mean other classes as numbers than as names.
    """
    found = set(labels)
    numbers = {label: number for label in found if (number := as_number(label)) is not None}
    is_named = found <= set(given) if given is not None else not numbers
    if given is not None and is_named and len(numbers) == len(found):
        _check_numbers_are_names(numbers, given, where)
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


def name_numbers(highest: int, given: ClassNames | None, where: str) -> list[str]:
    """Return the names of classes that are known by number: as given, else the numbers themselves as text."""
    if given is not None and highest >= len(given):
        raise InputError(
            f"label {highest} of {where} is beyond the {len(given)} names of source.class_names; labels count from 0"
        )
    numbers = numbers_up_to(highest, where)
    return numbers if given is None else list(given)


def numbers_up_to(highest: int, where: str) -> list[str]:
    """Return the numbers up to the highest label as text; raises InputError for one beyond all classes."""
    if highest >= _MOST_CLASSES:
        raise InputError(f"label {highest} of {where} is no class number; number the classes 0, 1, 2, …")
    return [str(label) for label in range(highest + 1)]


def check_counted_from_zero(counts: npt.NDArray[np.int64], where: str, take: str, thing: str = "image") -> None:
    """Raise InputError where labels count from 1, by how often each occurs; ``take`` is what allows it."""
    if len(counts) > 1 and counts[0] == 0 and counts[1:].all():
        raise InputError(
            f"the labels of {where} count from 1 to {len(counts) - 1}, so that class 0 would have no {thing}; write "
            f"each label less 1 ({take} keeps a class 0 without {thing}s)"
        )


def _check_numbers_are_names(numbers: Mapping[str, int], given: ClassNames, where: str) -> None:
    """Raise InputError where labels that are numbers are names of other classes."""
    for text, number in sorted(numbers.items(), key=lambda item: item[1]):
        named = given.labels_named(text)
        if named != [number]:
            raise InputError(
                f"label '{text}' of {where} may be number {number}, or the name of {in_words(named)} in "
                f"source.class_names; give names there that are not numbers"
            )


def _hint(name: str, known: ClassNames) -> str:
    hint = nearest(name, known)
    if "did you mean" in hint:
        return hint
    return f", which holds {few(known)}; add the class there, or take it out of the source"
