"""The listing: one table with a row an image, so that image ``i`` is read at random from anywhere."""

import errno
import hashlib
import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dit_scale.errors import Failure
from dit_scale.files import atomic_write
from dit_scale.retries import RetryPolicy, with_retries
from preprocessing.sources.names import LeftOut

WHOLE_FILE = -1
"""The offset of an image that is a file of its own."""

PATIENCE_SECONDS = 30.0

_PASSING = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EREMOTEIO", "ENOTCONN", "ECONNRESET", "EHOSTDOWN", "EBUSY")
    if hasattr(errno, name)
)

Table = npt.NDArray[Any]
"""Columns ``file``, ``name``, ``offset``, ``num_bytes`` and ``label``."""


class Row(NamedTuple):
    """One image: its file below the root, its name, where its bytes lie, and its label."""

    file: bytes
    name: bytes
    offset: int
    num_bytes: int
    label: int


class Place(NamedTuple):
    """Where an image's bytes lie."""

    path: Path
    offset: int
    num_bytes: int

    def read(self, patience_seconds: float = PATIENCE_SECONDS) -> bytes:
        """Return the image's bytes; storage that fails is asked again for a while, then a Failure names the file."""
        return with_retries(self._read, self._trouble, RetryPolicy(patience_seconds))

    def _trouble(self, error: Exception) -> str:
        """Return what went wrong, or raise what no retry can fix."""
        if not isinstance(error, OSError):
            raise error
        trouble = f"image file '{self.path}' cannot be read ({error.strerror})"
        if error.errno in _PASSING:
            return trouble
        raise Failure(
            f"{trouble}; see to the storage, or to files moved since they were listed, and run this again"
        ) from error

    def _read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.num_bytes)
        if self.num_bytes >= 0 and len(content) != self.num_bytes:
            raise Failure(
                f"'{self.path}' ends within the image of {self.num_bytes} bytes at {self.offset}, so it is shorter "
                f"than when it was listed; put the whole file back and run this again"
            )
        return content


class Source:
    """A listing of labelled images: columns ``file``, ``name``, ``offset``, ``num_bytes`` and ``label``."""

    def __init__(self, root: Path, class_names: list[str], table: Table, left_out: LeftOut | None = None):
        self.root, self.class_names = root, class_names
        self.left_out = LeftOut() if left_out is None else left_out
        """Files that were seen and are not in the listing; a listing that was loaded knows of none."""
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def label(self, index: int) -> int:
        """Return an image's label."""
        return int(self._table["label"][index])

    def name(self, index: int) -> str:
        """Return an image's name: its path below the root, tar and member, or class and member."""
        return os.fsdecode(bytes(self._table["name"][index]))

    def images_per_class(self) -> npt.NDArray[np.int64]:
        """Return the number of images of each label."""
        return np.bincount(self._table["label"], minlength=len(self.class_names))

    def place(self, index: int) -> Place:
        """Return where an image's bytes lie."""
        row = self._table[index]
        offset, num_bytes = int(row["offset"]), int(row["num_bytes"])
        path = self.root / os.fsdecode(bytes(row["file"]))
        return Place(path, 0, -1) if offset == WHOLE_FILE else Place(path, offset, num_bytes)

    def digest(self) -> str:
        """Return the SHA-256 of the listing, in which no absolute path takes part."""
        digest = hashlib.sha256("\n".join(self.class_names).encode("utf-8", "surrogateescape"))
        digest.update(str(self._table.dtype).encode())
        digest.update(np.ascontiguousarray(self._table).data.cast("B"))
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the table as an npy file, for encoders on other nodes."""
        with atomic_write(path) as file:
            np.save(file, self._table, allow_pickle=False)

    @classmethod
    def load(cls, root: Path, class_names: list[str], path: Path) -> "Source":
        """Open a table that ``save`` wrote, without reading all of it; ``root_of`` tells the root."""
        return cls(root, class_names, np.load(path, mmap_mode="r", allow_pickle=False))


def table_of(rows: Iterable[Row]) -> Table:
    """Return rows as a table, taking them one by one: a million fit a few hundred megabytes."""
    files: list[bytes] = []
    names: list[bytes] = []
    numbers = array("q")
    for row in rows:
        files.append(row.file)
        names.append(row.name)
        numbers.extend(row[2:])
    columns = [("offset", "<i8"), ("num_bytes", "<i8"), ("label", "<i8")]
    table = np.empty(len(names), [("file", _text(files)), ("name", _text(names)), *columns])
    if names:
        table["file"], table["name"] = files, names
    for number, (column, _) in enumerate(columns):
        table[column] = np.frombuffer(numbers, np.int64)[number::3]
    return table


def _text(values: list[bytes]) -> str:
    return f"S{max(map(len, values), default=1)}"
