"""Images as files: a tree of class folders, or a folder without classes and a file of labels."""

import os
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

from dit_scale.classes import ClassNames
from dit_scale.image_files import files_below, identity, is_hidden
from preprocessing.sources.classes import number_labels, order_classes
from preprocessing.sources.labels import read_labels
from preprocessing.sources.layout import check_class_folder, check_class_folders
from preprocessing.sources.names import LeftOut, base_of, counted_as, is_image, to_bytes
from preprocessing.sources.table import WHOLE_FILE, Row, Table, table_of

OUTSIDE = "images outside the class folders"


def list_folders(root: Path, given: ClassNames | None, is_checked: bool, left_out: LeftOut) -> tuple[list[str], Table]:
    """List the images anywhere below the class folders, folder by folder and by path.

    Raises InputError for folders that are probably no classes where ``is_checked``; names that are given are classes.
    """
    found = _class_folders(root, left_out)
    class_names = order_classes(found, given, f"class folders of '{root}'", lambda name: _is_empty(root, name))
    is_checked &= given is None
    if is_checked:
        check_class_folders(root, found)
    labels = {name: label for label, name in enumerate(class_names)}

    def rows() -> Iterator[Row]:
        for name in found:
            paths = _images_below(root, name, left_out)
            if is_checked:
                check_class_folder(root, name, paths, found)
            yield from map(_row, paths, repeat(labels[name]))

    return class_names, table_of(rows())


def _class_folders(root: Path, left_out: LeftOut) -> list[str]:
    """Return the folders in the root by name; the files beside them are counted."""
    folders = []
    with os.scandir(root) as entries:
        for entry in entries:
            if is_hidden(entry.name) or not entry.is_dir():
                left_out[OUTSIDE if is_image(entry.name) else counted_as(entry.name)] += 1
            else:
                folders.append(entry.name)
    return sorted(folders, key=to_bytes)


def list_flat(root: Path, labels: Path, given: ClassNames | None, left_out: LeftOut) -> tuple[list[str], Table]:
    """List the images anywhere below a folder by path, with their labels from a file."""
    paths = _images_below(root, "", left_out)
    numbers, class_names = number_labels(read_labels(labels, paths), given, f"'{labels}'")
    return class_names, table_of(map(_row, paths, numbers))


def _row(path: bytes, label: int) -> Row:
    return Row(path, path, WHOLE_FILE, -1, label)


def _images_below(root: Path, folder: str, left_out: LeftOut) -> list[bytes]:
    """Return the paths of all images below a folder, sorted; other files are counted."""
    top, start, above = (str(root / folder), f"{folder}/", {identity(str(root))}) if folder else (str(root), "", set())
    images = []
    for path in files_below(top, start, frozenset(above)):
        name = base_of(path)
        if is_image(name) and not is_hidden(name):
            images.append(to_bytes(path))
        else:
            left_out[counted_as(name)] += 1
    return sorted(images)


def _is_empty(root: Path, folder: str) -> bool:
    """Return whether a folder holds no image; stops at the first one."""
    files = map(base_of, files_below(str(root / folder), above=frozenset({identity(str(root))})))
    return not any(is_image(name) and not is_hidden(name) for name in files)
