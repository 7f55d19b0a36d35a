"""A list of images: a .jsonl or .csv file with the path and the label of each."""

import csv
import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from dit_scale.classes import ClassNames
from dit_scale.errors import InputError
from preprocessing.sources.classes import number_labels
from preprocessing.sources.names import ending_of, tidy, to_bytes
from preprocessing.sources.table import WHOLE_FILE, Row, Table, table_of


class _Entry(NamedTuple):
    path: bytes
    label: str
    line: int


def list_listed(path: Path, given: ClassNames | None) -> tuple[list[str], Table]:
    """List the images that a file names, by path; paths are relative to the file's folder, other columns are ignored.

    An absolute path is refused: the listing, and so the shards' plan, must not depend on where the images lie.
    """
    entries = sorted(_entries(path))
    for one, other in pairwise(entries):
        if one.path == other.path:
            raise InputError(
                f"'{path}' lists '{_text(one.path)}' twice, in lines {one.line} and {other.line}; list each image once"
            )
    _check_there(path, entries)
    labels, class_names = number_labels([entry.label for entry in entries], given, f"'{path}'")
    pairs = zip(entries, labels, strict=True)
    return class_names, table_of(Row(entry.path, entry.path, WHOLE_FILE, -1, label) for entry, label in pairs)


def _entries(path: Path) -> Iterator[_Entry]:
    labels: dict[str, str] = {}  # a million labels, few of them different
    for line, row in _json_rows(path) if ending_of(path.name) == ".jsonl" else _csv_rows(path):
        image, label = row.get("path"), row.get("label")
        if isinstance(label, int) and not isinstance(label, bool):
            label = str(label)
        if not isinstance(image, str) or not isinstance(label, str) or not image.strip() or not label.strip():
            raise InputError(f"line {line} of '{path}' has path {image!r} and label {label!r}; give a path and a class")
        if image.startswith("/"):
            raise InputError(
                f"line {line} of '{path}' has absolute path '{image}'; put the list above the images and write paths "
                f"relative to its folder"
            )
        label = label.strip()
        yield _Entry(to_bytes(tidy(image)), labels.setdefault(label, label), line)


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise InputError(f"line {line} of '{path}' is not JSON ({error}); write an object a line") from error
            if not isinstance(row, dict):
                raise InputError(f'line {line} of \'{path}\' is {text.strip()[:40]}; write {{"path": …, "label": …}}')
            yield line, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file)
        for column in ("path", "label"):
            if column not in (rows.fieldnames or []):
                raise InputError(
                    f"the first line of '{path}' names no column '{column}'; begin it with the header path,label"
                )
        try:
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            raise InputError(f"line {rows.line_num} of '{path}' is not CSV ({error}); mend it") from error


def _check_there(path: Path, entries: list[_Entry]) -> None:
    """Raise InputError for an image that is not there; asks each folder once, not each image."""
    for entry in entries:
        folder, _, base = entry.path.rpartition(b"/")
        if base not in _names_in(path.parent / _text(folder)):
            raise InputError(
                f"line {entry.line} of '{path}' names '{_text(entry.path)}', which is not in '{path.parent}'; write "
                f"paths relative to the list's folder"
            )
    _names_in.cache_clear()


@lru_cache(maxsize=16)
def _names_in(folder: Path) -> frozenset[bytes]:
    try:
        return frozenset(to_bytes(entry.name) for entry in folder.iterdir())
    except OSError:
        return frozenset()


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
