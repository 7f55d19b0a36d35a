"""A list of images: a .jsonl or .csv file, or EDM's dataset.json, with the path and the label of each."""

import csv
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from dit_scale.classes import ClassNames
from dit_scale.documents import Misfit, parsed
from dit_scale.errors import InputError
from preprocessing.sources.classes import number_labels
from preprocessing.sources.names import LeftOut, ending_of, from_bytes, is_image, is_list, tidy, to_bytes
from preprocessing.sources.table import WHOLE_FILE, Row, Table, table_of

_EDM_LIST = "dataset.json"
_BYTES_LOOKED_AT = 65_536
_EDM_FIX = (
    'write {"labels": [["00000/img00000000.png", 0], …]} with EDM\'s dataset_tool.py, or give the folder with '
    "source.labels=FILE"
)
UNLISTED = "images that the list does not name"


def list_in(path: Path) -> Path | None:
    """Return the list that a path is or, as a folder that EDM's dataset_tool.py made, holds; None where it is none."""
    if path.is_file():
        return path if is_list(path.name) or path.name == _EDM_LIST else None
    try:
        with (path / _EDM_LIST).open(encoding="utf-8", errors="surrogateescape") as file:
            is_edm = re.search(r'"labels"\s*:\s*\[\s*\[\s*"', file.read(_BYTES_LOOKED_AT))
    except OSError:
        return None
    return path / _EDM_LIST if is_edm else None


class _Entry(NamedTuple):
    path: bytes
    label: str
    line: int


def list_listed(path: Path, given: ClassNames | None, left_out: LeftOut) -> tuple[list[str], Table]:
    """List the images that a file names, by path; paths are relative to the file's folder, other columns are ignored.

    An absolute path is refused: the listing, and so the shards' plan, must not depend on where the images lie.
    """
    entries = sorted(_entries(path))
    for one, other in pairwise(entries):
        if one.path == other.path:
            raise InputError(
                f"'{path}' lists '{from_bytes(one.path)}' twice, in {_unit(path)}s {one.line} and {other.line}; list "
                f"each image once"
            )
    left_out[UNLISTED] += _count_unlisted(path, entries)
    labels, class_names = number_labels([entry.label for entry in entries], given, f"'{path}'")
    pairs = zip(entries, labels, strict=True)
    return class_names, table_of(Row(entry.path, entry.path, WHOLE_FILE, -1, label) for entry, label in pairs)


def _entries(path: Path) -> Iterator[_Entry]:
    labels: dict[str, str] = {}  # a million labels, few of them different
    rows = {".jsonl": _json_rows, ".json": _edm_rows}.get(ending_of(path.name), _csv_rows)
    for line, row in rows(path):
        image, label = row.get("path"), row.get("label")
        if isinstance(label, int) and not isinstance(label, bool):
            label = str(label)
        if not isinstance(image, str) or not isinstance(label, str) or not image.strip() or not label.strip():
            raise InputError(
                f"{_unit(path)} {line} of '{path}' has path {_shown(image)} and label {_shown(label)}; give a path and "
                f"a class"
            )
        if image.startswith("/"):
            raise InputError(
                f"{_unit(path)} {line} of '{path}' has absolute path '{image}'; put the list above the images and "
                f"write paths relative to its folder"
            )
        label = label.strip()
        yield _Entry(to_bytes(tidy(image)), labels.setdefault(label, label), line)


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                yield line, parsed(text.strip(), dict[str, Any])
            except Misfit as misfit:
                raise InputError(f'line {line} of \'{path}\': {misfit}; write {{"path": …, "label": …}}') from misfit


class _EdmLabels(TypedDict):
    labels: list[list[Any]]


def _edm_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the pairs of ``{"labels": [["00000/img00000000.png", 0], …]}``."""
    try:
        pairs = parsed(path.read_text("utf-8-sig", "surrogateescape"), _EdmLabels)["labels"]
    except Misfit as misfit:
        raise InputError(f"'{path}' is not a list of EDM's: {misfit}; {_EDM_FIX}") from misfit
    if misfit_at := next((number for number, pair in enumerate(pairs, 1) if len(pair) != 2), None):
        raise InputError(f"pair {misfit_at} of '{path}' holds no path and label; {_EDM_FIX}")
    for number, (image, label) in enumerate(pairs, 1):
        if isinstance(image, str) and ending_of(image) == ".npy":
            raise InputError(
                f"'{path}' lists arrays ('{image}'), which are latents already; give the folder of images they were "
                f"made from"
            )
        yield number, {"path": image, "label": label}


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
            raise InputError(
                f"'{path}' is not CSV after line {rows.line_num}: a quote is not closed, a field is longer than "
                f"{csv.field_size_limit():,} characters, or a byte is zero; fix it"
            ) from error


def _count_unlisted(path: Path, entries: list[_Entry]) -> int:
    """Return how many images lie unlisted beside the listed ones; asks each folder once, not each image.

    Raises InputError for a listed image that is not there.
    """
    images: dict[bytes, int] = {}
    for entry in entries:
        folder, _, base = entry.path.rpartition(b"/")
        names = _names_in(path.parent / from_bytes(folder))
        if folder not in images:
            images[folder] = sum(is_image(from_bytes(name)) for name in names)
        images[folder] -= is_image(from_bytes(base))
        if base not in names:
            raise InputError(
                f"{_unit(path)} {entry.line} of '{path}' names '{from_bytes(entry.path)}', which is not in "
                f"'{path.parent}'; write paths relative to the list's folder"
            )
    _names_in.cache_clear()
    return sum(images.values())


def _shown(value: Any) -> str:
    """Return a value as a sentence quotes it."""
    if value is None:
        return "nothing"
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)[:40]


def _unit(path: Path) -> str:
    """Return what a list's rows are called in a sentence."""
    return "pair" if ending_of(path.name) == ".json" else "line"


@lru_cache(maxsize=16)
def _names_in(folder: Path) -> frozenset[bytes]:
    try:
        return frozenset(to_bytes(entry.name) for entry in folder.iterdir())
    except OSError:
        return frozenset()
