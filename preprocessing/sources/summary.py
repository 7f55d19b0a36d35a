"""What a listing found, in a few lines: read before days of encoding, it shows a wrong folder."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dit_scale.classes import ClassNames, as_number
from dit_scale.errors import few
from preprocessing.sources.folders import OUTSIDE
from preprocessing.sources.foreign import foreign_below
from preprocessing.sources.ilsvrc import described
from preprocessing.sources.names import LeftOut, to_bytes
from preprocessing.sources.table import Source

_KINDS_SHOWN = 5


def summary(source: Source) -> str:
    """Return images, classes, the smallest and the largest class, and what was left out, in a line each."""
    return found_in_words(ClassNames(source.class_names), source.images_per_class(), source.left_out, "image")


def found_in_words(names: ClassNames, counts: npt.NDArray[np.int64], left_out: LeftOut, thing: str) -> str:
    """Return what ``summary`` does of ``thing``s, by how many each class has."""
    return "\n".join(_lines(names, counts, left_out, thing))


def nothing_in(path: Path, left_out: LeftOut) -> str:
    """Return the sentence for a source without an image: what lies there, and what takes it."""
    images = left_out[OUTSIDE]
    if images:
        return (
            f"source.path '{path}' holds {plural(images, 'image')} and no class folder with images; give the folder "
            f"above where it is one class of several, give source.labels=FILE with a line an image, or move the images "
            f"into one folder in it for a single class"
        )
    if path.is_dir() and (foreign := foreign_below(path)):
        return f"source.path '{path}' holds no image; {foreign}"
    return (
        f"source.path '{path}' holds no image{_but(left_out)}; images lie in class folders (CLASS/NAME.jpg, .png, …), "
        f"in webdataset tars with KEY.jpg and KEY.cls, in class tars, or in one folder or tar with source.labels"
    )


def _lines(names: ClassNames, counts: npt.NDArray[np.int64], left_out: LeftOut, thing: str) -> Iterator[str]:
    of_classes = f"found {plural(int(counts.sum()), thing)} of {plural(len(names), 'class', 'classes')}"
    if len(names) == 1:
        yield f"{of_classes}, '{names[0]}'"
    else:
        present = counts.nonzero()[0]
        least, most = int(present[counts[present].argmin()]), int(counts.argmax())
        yield f"{of_classes}, from '{names[0]}' (label 0) to '{names[-1]}' (label {len(names) - 1})"
        yield (
            f"the smallest class with {thing}s has {int(counts[least]):,} ('{names.title(least)}'), the largest "
            f"{int(counts[most]):,} ('{names.title(most)}')"
        )
    if known := described(names):
        yield known
    if empty := [f"'{names.title(int(label))}'" for label in (counts == 0).nonzero()[0]]:
        article = "an" if thing[0] in "aeiou" else "a"
        yield f"without {article} {thing}: {plural(len(empty), 'class', 'classes')}, {few(empty)}"
    if other := _other_number(names):
        yield other
    if what := _counted(left_out):
        yield f"left out: {what}"


def _other_number(names: Sequence[str]) -> str | None:
    """Return that classes with numbers for names have other labels, or that numbers in names are not in order."""
    numbers = [as_number(name) for name in names]
    if None not in numbers:
        label = next((label for label, number in enumerate(numbers) if number != label), None)
        said = "not their names: class '{}' is label {}"
    else:
        label = _out_of_order(names)
        said = "which is that of text: class '{}' is label {}, before '{}'; a file of class names gives another order"
    if label is None:
        return None
    after = names[label + 1 : label + 2]
    return f"labels are places in the order of the classes, {said.format(names[label], label, *after)}"


def _out_of_order(names: Sequence[str]) -> int | None:
    """Return the first label before one with a lower number behind the same letters, of names sorted as text.

    They stay so: who fine-tunes a model has its labels in this order, as most have who read folders.
    """
    if list(names) != sorted(names, key=to_bytes):
        return None
    numbered = [re.fullmatch(r"([^0-9]*)([0-9]+)[^0-9]*", name) for name in names]
    for label, (one, other) in enumerate(pairwise(numbered)):
        if one and other and one[1] == other[1] and int(one[2]) > int(other[2]):
            return label
    return None


def _but(left_out: LeftOut) -> str:
    counted = _counted(left_out)
    return f" (but {counted})" if counted else ""


def _counted(left_out: LeftOut) -> str:
    """Return the counts, the highest first, of all kinds of files."""
    kinds = [(kind, count) for kind, count in left_out.most_common() if count]
    others = sum(count for _, count in kinds[_KINDS_SHOWN:])
    shown = [*kinds[:_KINDS_SHOWN], ("others", others)] if others else kinds
    return ", ".join(f"{kind} ({count:,})" for kind, count in shown)


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun: 1 image, 1,200 images."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
