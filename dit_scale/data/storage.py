"""Where the files of a shard folder lie, and reading them: a folder of this machine, or object storage."""

import errno
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from dit_scale.retries import RetryPolicy, with_retries

UNKNOWN_BYTES = -1
"""Stands for the size of a small file that is requested: whatever comes is taken."""
REMOTE = re.compile(r"(?P<scheme>[a-z][a-z0-9+-]+):/+(?P<rest>.*)")
_BEYOND_HOPE = (errno.EINVAL, errno.EFAULT, errno.EISDIR)  # the call is wrong, and will be the next time

_Result = TypeVar("_Result")


class File(NamedTuple):
    """A file of a shard folder, and how long it must be."""

    name: str
    """Below the shard folder."""
    num_bytes: int


class Storage(Protocol):
    """Where the files of a shard folder lie; may be used from several threads."""

    location: str
    """As the user gave it, for messages."""

    def content(self, name: str) -> bytes:
        """Return a small file whole; raises FileNotFoundError where it is not there."""

    def pread(self, file: File, buffer: Any, offset: int) -> int:
        """Fill a flat buffer of bytes from a shard; return how many there were, fewer only at the shard's end."""

    def check(self, file: File) -> str | None:
        """Return how a shard is wrong, as far as can be told cheaply, or None."""

    def request(self, files: Sequence[File]) -> None:
        """Say which files will be read soon, so that they are fetched meanwhile; never blocks."""

    def forget(self, file: File) -> bool:
        """Drop this machine's copy of a file that has proved damaged; return whether the next read makes a new one."""

    def folder(self) -> Path:
        """Return a folder of this machine that holds the small files asked for."""

    def close(self) -> None:
        """End all that is under way; a read that another thread is in ends by itself."""


def is_remote(path: str | Path) -> bool:
    """Whether a path is a location in object storage."""
    return REMOTE.fullmatch(str(path)) is not None


class Descriptor:
    """An open file that closes once nobody holds it, so that it is never closed under a thread that reads."""

    __slots__ = ("number", "was_read")

    def __init__(self, number: int):
        self.number, self.was_read = number, False

    @property
    def is_linked(self) -> bool:
        """Whether the file still has a name; where it has none, closing it frees its space."""
        return os.fstat(self.number).st_nlink > 0

    def __del__(self) -> None:
        os.close(self.number)


class OpenShards(ABC):
    """Shards that are kept open, and reads from them that are tried again where they fail."""

    def __init__(self, location: str, patience_seconds: float):
        self.location = location
        self._patience_seconds = patience_seconds
        self._open: dict[str, Descriptor] = {}
        self._closed = threading.Event()

    def pread(self, file: File, buffer: Any, offset: int) -> int:
        """Fill a flat buffer of bytes from a shard; return how many there were, fewer only at the shard's end."""
        try:
            descriptor = self._open[file.name]
            count = os.preadv(descriptor.number, [buffer], offset)
            descriptor.was_read = True
            if count == len(buffer):
                return count
        except (KeyError, OSError):
            pass  # not open yet, or no longer what it was
        return with_retries(
            lambda: self._open_and_read(file, buffer, offset),
            lambda error: self._read_trouble(file, error),
            RetryPolicy(self._patience_seconds, self._closed),
        )

    def close(self) -> None:
        """Close the shards; one that a thread reads closes when that is done."""
        self._closed.set()
        self._open = {}

    @abstractmethod
    def _open_shard(self, file: File) -> Descriptor:
        """Open a shard; an OSError is waited for, anything else is final."""

    def _open_and_read(self, file: File, buffer: Any, offset: int) -> int:
        """Open a shard, also where it is open: a file that was replaced, or has grown to its size, shows only then."""
        if not self._closed.is_set():
            descriptor = self._open[file.name] = self._open_shard(file)
        if self._closed.is_set():  # perhaps meanwhile
            self._open = {}
            raise ValueError(f"'{self.location}' is closed")
        return os.preadv(descriptor.number, [buffer], offset)

    def _read_trouble(self, file: File, error: Exception) -> str:
        if not isinstance(error, OSError) or error.errno in _BEYOND_HOPE:
            raise error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            self._open = {}  # they are opened again when they are read
        return f"shard '{self.location}/{file.name}' cannot be read ({error.strerror or error})"


class LocalStorage(OpenShards):
    """A folder of this machine, or of a file system that is mounted here."""

    def __init__(self, path: str | Path, patience_seconds: float = 600.0):
        super().__init__(str(path), patience_seconds)
        self._folder = Path(path)

    def content(self, name: str) -> bytes:
        """Return a small file whole; raises FileNotFoundError where it is not there."""
        return self._patiently((self._folder / name).read_bytes, name)

    def check(self, file: File) -> str | None:
        """Return how a shard is wrong by its size and rights, or None."""
        path = self._folder / file.name
        try:
            num_bytes = self._patiently(path.stat, file.name).st_size
        except FileNotFoundError:
            return "is missing"
        if num_bytes != file.num_bytes:
            return f"has {num_bytes} bytes, its manifest says {file.num_bytes}"
        return None if os.access(path, os.R_OK) else "may not be read by this user"

    def request(self, files: Sequence[File]) -> None:
        """Do nothing: the files are here."""

    def forget(self, file: File) -> bool:
        """Do nothing: there is no other copy."""
        return False

    def folder(self) -> Path:
        """Return the folder itself."""
        return self._folder

    def _open_shard(self, file: File) -> Descriptor:
        return Descriptor(os.open(self._folder / file.name, os.O_RDONLY))

    def _patiently(self, action: Callable[[], _Result], name: str) -> _Result:
        retries = RetryPolicy(self._patience_seconds, self._closed)
        return with_retries(action, lambda error: self._lookup_trouble(name, error), retries)

    def _lookup_trouble(self, name: str, error: Exception) -> str:
        lasting = (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError)
        if isinstance(error, lasting) or not isinstance(error, OSError):
            raise error
        return f"'{self._folder / name}' cannot be read ({error.strerror or error})"
