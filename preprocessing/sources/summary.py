"""What a listing found, in a few lines: read before days of encoding, it shows a wrong folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dit_scale.classes import ClassNames, as_number
from dit_scale.errors import few
from preprocessing.sources.folders import OUTSIDE
from preprocessing.sources.foreign import foreign_below
from preprocessing.sources.ilsvrc import described
from preprocessing.sources.names import LeftOut
from preprocessing.sources.table import Source

_KINDS_SHOWN = 5


def summary(source: Source) -> str:
    """Return images, classes, the smallest and the largest class, and what was left out, in a line each."""
    return "\n".join(_lines(source))


def nothing_in(path: Path, left_out: LeftOut) -> str:
    """Return the sentence for a source without an image: what lies there, and what takes it."""
    images = left_out[OUTSIDE]
    if images:
        return (
            f"source.path '{path}' holds {_plural(images, 'image')} and no class folder with images; give the folder "
            f"above where it is one class of several, give source.labels=FILE with a line an image, or move the images "
            f"into one folder in it for a single class"
        )
    if path.is_dir() and (foreign := foreign_below(path)):
        return f"source.path '{path}' holds no image; {foreign}"
    return (
        f"source.path '{path}' holds no image{_but(left_out)}; images lie in class folders (CLASS/NAME.jpg, .png, …), "
        f"in webdataset tars with KEY.jpg and KEY.cls, in class tars, or in one folder or tar with source.labels"
    )


def _lines(source: Source) -> Iterator[str]:
    names, counts = ClassNames(source.class_names), source.images_per_class()
    of_classes = f"found {_plural(len(source), 'image')} of {_plural(len(names), 'class', 'classes')}"
    if len(names) == 1:
        yield f"{of_classes}, '{names[0]}'"
    else:
        present = counts.nonzero()[0]
        least, most = int(present[counts[present].argmin()]), int(counts.argmax())
        yield f"{of_classes}, from '{names[0]}' (label 0) to '{names[-1]}' (label {len(names) - 1})"
        yield (
            f"the smallest class with images has {int(counts[least]):,} ('{names.title(least)}'), the largest "
            f"{int(counts[most]):,} ('{names.title(most)}')"
        )
    if known := described(names):
        yield known
    if empty := [f"'{names.title(int(label))}'" for label in (counts == 0).nonzero()[0]]:
        yield f"without an image: {_plural(len(empty), 'class', 'classes')}, {few(empty)}"
    if other := _other_number(names):
        yield other
    if left_out := _counted(source.left_out):
        yield f"left out: {left_out}"


def _other_number(names: Sequence[str]) -> str | None:
    """Return that classes with numbers for names have other labels, or None where they have these."""
    numbers = [as_number(name) for name in names]
    if None in numbers or numbers == list(range(len(numbers))):
        return None
    label = next(label for label, number in enumerate(numbers) if number != label)
    return f"labels are places in the order of the classes, not their names: class '{names[label]}' is label {label}"


def _but(left_out: LeftOut) -> str:
    counted = _counted(left_out)
    return f" (but {counted})" if counted else ""


def _counted(left_out: LeftOut) -> str:
    """Return the counts, the highest first, of all kinds of files."""
    kinds = [(kind, count) for kind, count in left_out.most_common() if count]
    others = sum(count for _, count in kinds[_KINDS_SHOWN:])
    shown = [*kinds[:_KINDS_SHOWN], ("others", others)] if others else kinds
    return ", ".join(f"{kind} ({count:,})" for kind, count in shown)


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
