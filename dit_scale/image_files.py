"""Which files are images, by their endings, and which formats are decoded, whatever a file's ending."""

import os
from collections.abc import Iterator
from pathlib import Path

from dit_scale.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
"""Pillow's plain ones; its others may start programs (EPS) or need plugins."""
IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"})


_OF_A_SYSTEM = frozenset({"__MACOSX", "lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"})


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, as what a Mac leaves beside each file, or is a system's own."""
    return name.startswith(".") or name in _OF_A_SYSTEM


def files_below(folder: str, start: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yield ``start`` and the path below a folder of each file, and of hidden folders, which are not looked into.

    Symbolic links are followed; raises InputError where one leads back to a folder above, or to one of ``above``.
    """
    try:
        here = identity(folder)
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError as error:
        raise InputError(f"folder '{folder}' cannot be read ({error.strerror}); see to its permissions") from error
    if here in above:
        raise InputError(f"'{folder}' is a link to a folder above itself; remove the link")
    for entry in entries:
        if is_hidden(entry.name) or not entry.is_dir():
            yield start + entry.name
        else:
            yield from files_below(entry.path, f"{start}{entry.name}/", above | {here})


def identity(folder: str) -> tuple[int, int]:
    """Return what tells a folder from others by whatever path."""
    found = Path(folder).stat()
    return found.st_dev, found.st_ino
