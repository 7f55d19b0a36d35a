"""Label files of images without class folders: ``LABEL`` lines in the order of names, or ``NAME LABEL`` lines."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from dit_scale.errors import InputError


class _Line(NamedTuple):
    number: int
    name: str | None
    label: str


def read_labels(path: Path, names: Sequence[bytes]) -> list[str]:
    """Return the label of each image; ``names`` are their paths below the root, sorted.

    NAME is a path, or the end of one, with or without its ending; blanks, a comma or a tab end it. Only the first word
    after it is read, so that Kaggle's LOC_val_solution.csv is such a file, header and boxes and all.
    """
    lines = list(_lines(path))
    for one, other in pairwise(lines):
        if (one.name is None) != (other.name is None):
            raise InputError(
                f"source.labels '{path}' has lines of one word and lines of more (line {other.number}); write LABEL or "
                f"NAME LABEL in all of them"
            )
    if lines and lines[0].name is not None:
        return _by_name(path, lines, names)
    if len(lines) != len(names):
        raise InputError(
            f"source.labels '{path}' holds {len(lines)} labels for {len(names)} images; write one for each, in the "
            f"order of their names, or NAME LABEL"
        )
    return [line.label for line in lines]


def _lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield _parsed(path, number, text.strip())
    except OSError as error:
        raise InputError(
            f"source.labels '{path}' cannot be read ({error.strerror}); give a text file with a line an image"
        ) from error


def _parsed(path: Path, number: int, text: str) -> _Line:
    """Split a line at its first comma, else its first tab, else its first blank."""
    separator = next((mark for mark in (",", "\t") if mark in text), None)
    name, *rest = [part.strip() for part in text.split(separator, 1)]
    if not rest:
        return _Line(number, None, name)
    words = re.split(r"[\s,]+", rest[0])
    if not name or not words[0]:
        raise InputError(f"line {number} of source.labels '{path}' is '{text[:40]}'; write LABEL or NAME LABEL")
    return _Line(number, name, words[0])


def _by_name(path: Path, lines: list[_Line], names: Sequence[bytes]) -> list[str]:
    """Return each image's label; raises InputError unless each image has one line and each line one image."""
    entries: dict[str | None, _Line] = {}
    for line in lines:
        if line.name in entries:
            raise InputError(f"source.labels '{path}' holds '{line.name}' twice; label each image once")
        entries[line.name] = line
    labels: list[str] = []
    image_of: dict[int, str] = {}
    for name in map(_to_text, names):
        found = {entries[form] for form in _forms(name) if form in entries}
        if len(found) != 1:
            raise InputError(f"source.labels '{path}' holds {_few(found)} for image '{name}'; label each image once")
        line = found.pop()
        if line.number in image_of:
            raise InputError(
                f"'{line.name}' in source.labels '{path}' is image '{image_of[line.number]}' and image '{name}'; write "
                f"their paths"
            )
        image_of[line.number] = name
        labels.append(line.label)
    _check_used(path, lines, image_of)
    return labels


def _check_used(path: Path, lines: list[_Line], image_of: dict[int, str]) -> None:
    """Raise InputError for a line without an image, other than a header: a first line whose name has no digit."""
    for line in lines:
        is_header = line is lines[0] and not re.search(r"[0-9.]", line.name or "")
        if line.number not in image_of and not is_header:
            raise InputError(
                f"'{line.name}' in line {line.number} of source.labels '{path}' is no image of the source; take the "
                f"line out, or put the image in"
            )


def _forms(name: str) -> Iterator[str]:
    """Yield the names under which an image may be listed: its path, ends of it, and each without its ending."""
    parts = name.split("/")
    for first in range(len(parts)):
        form = "/".join(parts[first:])
        yield form
        yield form.rpartition(".")[0]


def _few(found: set[_Line]) -> str:
    return "no label" if not found else "two labels"


def _to_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
