"""Names of files and tar members: which are images, which are hidden, and how they are sorted."""

import os
from collections import Counter
from pathlib import PurePosixPath

from dit_scale.image_files import IMAGE_ENDINGS, is_hidden

LIST_ENDINGS = frozenset({".jsonl", ".csv"})
_LONGEST_ENDING = 12

LeftOut = Counter[str]
"""How many files a listing leaves out, by what they are."""


def is_image(name: str) -> bool:
    """Return whether a name ends as an image's does; upper case counts."""
    return ending_of(name) in IMAGE_ENDINGS


def is_list(name: str) -> bool:
    """Return whether a name ends as a list of images does."""
    return ending_of(name) in LIST_ENDINGS


def is_tar(name: str) -> bool:
    """Return whether a name ends as an uncompressed tar's does."""
    return ending_of(name) == ".tar"


def ending_of(name: str) -> str:
    """Return the last ending of a name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a million names)


def counted_as(name: str) -> str:
    """Return what a file that is left out is counted as: its ending, where it has one."""
    if is_hidden(base_of(name)):
        return "hidden files"
    ending = ending_of(name)
    return ending if 1 < len(ending) <= _LONGEST_ENDING else "files without an ending"


def base_of(name: str) -> str:
    """Return a member's or a file's name without its folders."""
    return name.rpartition("/")[2]


def to_bytes(name: str) -> bytes:
    """Return a name as the file system has it; names that are not UTF-8 come back as they were."""
    return name.encode("utf-8", "surrogateescape")


def from_bytes(name: bytes) -> str:
    """Return the text of a name as the file system has it."""
    return name.decode("utf-8", "surrogateescape")


def tidy(path: str) -> str:
    """Return a relative path without ``.`` and ``//``; ``..`` stays, which may lead through a symbolic link."""
    return str(PurePosixPath(path))
