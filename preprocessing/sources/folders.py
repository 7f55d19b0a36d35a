"""Images as files: a tree of class folders, or a folder without classes and a file of labels."""

import os
from collections.abc import Iterator
from pathlib import Path

from dit_scale.classes import ClassNames
from dit_scale.errors import InputError
from preprocessing.sources.classes import number_labels, order_classes
from preprocessing.sources.labels import read_labels
from preprocessing.sources.names import is_hidden, is_image, to_bytes
from preprocessing.sources.table import WHOLE_FILE, Row, Table, table_of


def list_folders(root: Path, given: ClassNames | None) -> tuple[list[str], Table]:
    """List the images anywhere below the class folders, folder by folder and by path."""
    with os.scandir(root) as entries:
        found = sorted((e.name for e in entries if e.is_dir() and not is_hidden(e.name)), key=to_bytes)
    class_names = order_classes(found, given, f"class folders of '{root}'")
    labels = {name: label for label, name in enumerate(class_names)}
    return class_names, table_of(_row(path, labels[name]) for name in found for path in _images_below(root, name))


def list_flat(root: Path, labels: Path, given: ClassNames | None) -> tuple[list[str], Table]:
    """List the images anywhere below a folder by path, with their labels from a file."""
    paths = _images_below(root, "")
    numbers, class_names = number_labels(read_labels(labels, paths), given, f"'{labels}'")
    return class_names, table_of(map(_row, paths, numbers))


def _row(path: bytes, label: int) -> Row:
    return Row(path, path, WHOLE_FILE, -1, label)


def _images_below(root: Path, folder: str) -> list[bytes]:
    """Return the paths of all images below a folder, sorted."""
    top = str(root / folder) if folder else str(root)
    start = f"{folder}/" if folder else ""
    return sorted(to_bytes(path) for path in _walk(top, start, {_identity(str(root)), _identity(top)}))


def _walk(folder: str, below: str, above: set[tuple[int, int]]) -> Iterator[str]:
    """Yield paths of images; symbolic links are followed, unless they lead back to a folder above."""
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not is_hidden(entry.name)]
    except OSError as error:
        raise InputError(f"folder '{folder}' cannot be read ({error.strerror}); see to its permissions") from error
    for entry in entries:
        if not entry.is_dir():
            if is_image(entry.name):
                yield below + entry.name
            continue
        identity = _identity(entry.path)
        if identity in above:
            raise InputError(f"'{entry.path}' is a link to a folder above itself; remove the link")
        yield from _walk(entry.path, f"{below}{entry.name}/", above | {identity})


def _identity(folder: str) -> tuple[int, int]:
    found = Path(folder).stat()
    return found.st_dev, found.st_ino
