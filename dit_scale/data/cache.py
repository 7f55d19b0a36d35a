"""Copies, on this machine, of the files of one remote shard folder, shared by the processes of this machine.

Below the root there is a folder for each location and in it one for each version of its manifest::

    <location>/lock                   held while a process comes, and while it tidies up
    <location>/desk-<host>-<pid>-*/   what a process is about to add; its file ``alive`` is locked while it lives
    <location>/<version>/             the small files, by their names
    <location>/<version>/shards/      the shards
    <location>/<version>/locks/       one for each file, held while it is fetched

All locks are the kernel's and fall with their process, so that one that is killed leaves only files. A file is renamed
into its place when it is whole.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote

from dit_scale.data.storage import UNKNOWN_BYTES, Descriptor, File
from dit_scale.errors import InputError
from dit_scale.files import exclusive_lock, make_writable_folder, remove

_SHARDS, _LOCKS, _ROOM_LOCK = "shards", "locks", "room.lock"
_DESK, _ALIVE, _RESERVED = "desk-", "alive", "reserved-"
_BUSY = (
    "cache folder '{place}' is held by {{holder}}; wait until that ends, or give another data.cache (inspect: --cache)"
)


class Cache:
    """The files of one version of one location."""

    def __init__(self, root: Path | None, location: str, limit_bytes: int | None, patience_seconds: float):
        self._place = _root(root) / hashlib.sha256(location.encode()).hexdigest()[:16]
        self._limit_bytes, self._patience_seconds = limit_bytes, patience_seconds
        make_writable_folder(self._place, "cache folder")
        with self._lock(self._place / "lock"):
            for desk in self._place.glob(f"{_DESK}*"):
                if _is_abandoned(desk):  # to which a thread may still be adding; what stays goes another time
                    shutil.rmtree(desk, ignore_errors=True)
            prefix = f"{_DESK}{socket.gethostname()}-{os.getpid()}-"
            self._desk = Path(tempfile.mkdtemp(prefix=prefix, dir=self._place))
            self._alive = _hold(self._desk / _ALIVE)
        self.folder = self._place / "unknown"

    def use(self, version: str) -> None:
        """Turn to a version of the location; others that no living process uses are removed."""
        with self._lock(self._place / "lock"):
            self._alive.write(version)
            self._alive.flush()
            self.folder = self._place / version
            for folder in (self.folder / _SHARDS, self.folder / _LOCKS):
                folder.mkdir(parents=True, exist_ok=True)
            used = {(desk / _ALIVE).read_text() for desk in self._place.glob(f"{_DESK}*") if not _is_abandoned(desk)}
            for folder in self._place.iterdir():
                if folder.is_dir() and not folder.name.startswith(_DESK) and folder.name not in used:
                    remove(folder)

    def path(self, file: File) -> Path:
        """Return where a file is kept."""
        if file.num_bytes == UNKNOWN_BYTES:
            return self.folder / file.name
        return self.folder / _SHARDS / quote(file.name, safe="")

    def open(self, file: File) -> Descriptor | None:
        """Open a file that is here, or return None; one of another size does not count."""
        try:
            descriptor = Descriptor(os.open(self.path(file), os.O_RDONLY))
        except FileNotFoundError:
            return None
        if file.num_bytes not in (UNKNOWN_BYTES, os.fstat(descriptor.number).st_size):
            return None
        self.touch(descriptor)
        return descriptor

    def touch(self, descriptor: Descriptor) -> None:
        """Mark a shard as just used: those not used for longest are removed first."""
        if self._limit_bytes is not None:
            os.utime(descriptor.number)

    @contextmanager
    def only_one(self, file: File) -> Iterator[None]:
        """Wait until no other process or thread fetches this file, and keep them from it."""
        with self._lock(self.folder / _LOCKS / quote(file.name, safe="")):
            yield

    @contextmanager
    def part(self) -> Iterator[Path]:
        """Give a path for a file that is being fetched; what is left there is removed."""
        self._desk.mkdir(exist_ok=True)  # whoever tidies up temporary files may have taken it
        folder = Path(tempfile.mkdtemp(dir=self._desk))
        try:
            yield folder / "part"
        finally:
            remove(folder)

    def add(self, part: Path, file: File) -> Descriptor:
        """Put a fetched file into its place, and open it before anybody can remove it from there."""
        path = self.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = Descriptor(os.open(part, os.O_RDONLY))
        if file.num_bytes == UNKNOWN_BYTES:
            os.fsync(descriptor.number)  # a shard's records are checked as they are read, this may not be
        part.replace(path)
        return descriptor

    @contextmanager
    def room(self, file: File, spared: Collection[str], may_displace: bool) -> Iterator[bool]:
        """Set room aside for a file while it is fetched; yields whether there is enough (small files need none).

        Shards not used for longest make room; those ``spared`` only where others do not suffice and they may be
        evicted, the last of them first.
        """
        if self._limit_bytes is None or file.num_bytes == UNKNOWN_BYTES:
            yield True
            return
        reservation = self._desk / f"{_RESERVED}{quote(file.name, safe='')}"
        with self._lock(self.folder / _ROOM_LOCK):
            victims = self._victims(file.num_bytes, spared, may_displace)
            for victim in victims or []:
                victim.path.unlink(missing_ok=True)
            if victims is not None:
                self._desk.mkdir(exist_ok=True)
                reservation.touch()
                os.truncate(reservation, file.num_bytes)  # takes no space, but says how much will be taken
        try:
            yield victims is not None
        finally:
            reservation.unlink(missing_ok=True)

    def remove(self, file: File, descriptor: Descriptor | None) -> None:
        """Remove a copy; where a descriptor of it is given, only if it is still that one."""
        path = self.path(file)
        try:
            if descriptor is None or path.stat().st_ino == os.fstat(descriptor.number).st_ino:
                path.unlink()
        except FileNotFoundError:
            pass

    def close(self) -> None:
        """Clear the desk; what a thread may still put there is removed by whoever comes next."""
        shutil.rmtree(self._desk, ignore_errors=True)
        self._alive.close()

    def _victims(self, num_bytes: int, spared: Collection[str], may_displace: bool) -> "list[_Copy] | None":
        """Return which shards must go for a new one, or None where those that may go do not suffice."""
        copies = [_Copy.of(path) for path in (self.folder / _SHARDS).glob("*")]
        desks = [desk for desk in self._place.glob(f"{_DESK}*") if not _is_abandoned(desk)]
        reservations = [_Copy.of(path) for desk in desks for path in desk.glob(f"{_RESERVED}*")]
        here = {(f"{_RESERVED}{copy.path.name}", copy.num_bytes) for copy in copies}  # perhaps come a moment ago
        coming = sum(one.num_bytes for one in reservations if (one.path.name, one.num_bytes) not in here)
        excess = sum(copy.num_bytes for copy in copies) + coming + num_bytes - (self._limit_bytes or 0)
        order = {quote(name, safe=""): place for place, name in enumerate(spared)}
        candidates = sorted((copy for copy in copies if copy.path.name not in order), key=lambda copy: copy.used)
        if may_displace:
            last_first = sorted((copy for copy in copies if copy.path.name in order), key=lambda c: -order[c.path.name])
            candidates += last_first
        victims = []
        for copy in candidates:
            if excess <= 0:
                break
            victims.append(copy)
            excess -= copy.num_bytes
        return victims if excess <= 0 else None

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path, _BUSY.format(place=self._place), self._patience_seconds):
            yield


class _Copy(NamedTuple):
    """A shard in the cache."""

    path: Path
    num_bytes: int
    used: int

    @classmethod
    def of(cls, path: Path) -> "_Copy":
        try:
            status = path.stat()
        except FileNotFoundError:  # another process has just removed it
            return cls(path, 0, 0)
        return cls(path, status.st_size, status.st_mtime_ns)


def _root(root: Path | None) -> Path:
    """Return the folder for caches: the one given, or one of this user's own among the temporary files."""
    if root is not None:
        return root
    own = Path(tempfile.gettempdir()) / f"dit_scale-{os.getuid()}"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        raise InputError(f"cache folder '{own}' belongs to another user; give data.cache (inspect: --cache)")
    return own


def _hold(path: Path) -> IO[str]:
    """Create a file and lock it for as long as this process lives."""
    file = path.open("w")
    with suppress(OSError):  # no locks on this file system: nobody will take the owner for dead, either
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _is_abandoned(desk: Path) -> bool:
    """Return whether the process whose desk this is has ended."""
    try:
        with (desk / _ALIVE).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
