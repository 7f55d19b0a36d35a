"""Files that are whole or absent: written under a temporary name, fsynced, renamed."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dit_scale.errors import Failure, InputError

log = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears at ``path`` only once it is complete and on disk.

    The temporary name holds host and process, so two writers never share one; it is removed on failure. The error of a
    disk that is full or read-only names the file.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with temporary.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # on a file system that may not be written to, which the first error says
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and (is_full(error) or error.errno == errno.EROFS):
            error.filename = str(path)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears at ``path`` only once it is complete; raises InputError where something is there.

    The temporary name holds host and process; it is removed on failure.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"'{path}' is there already; remove it, or give another path")
    make_writable_folder(path.parent, "folder")
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        for place in (*temporary.rglob("*"), temporary):
            fsync_folder(place)
        temporary.replace(path)
        fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            remove(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


@contextmanager
def exclusive_lock(path: Path, refusal: str, patience_seconds: float = 15.0) -> Iterator[None]:
    """Hold a lock file that falls with the process, however that ends; only one process at a time.

    Waits a little, since a launcher may start the next attempt while the last is still dying; then raises
    InputError with ``refusal``, in which ``{holder}`` stands for who holds it.
    """
    with path.open("a+") as file:
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise InputError(refusal.replace("{holder}", file.read().strip() or "another process")) from error
                time.sleep(0.2)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                    raise
                log.warning("no locks on the file system of '%s': see to it that one process writes there", path)
                break
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def holder_of(path: Path) -> str | None:
    """Return who holds a lock file of ``exclusive_lock``, or None where nobody does."""
    if not path.is_file():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another process"
        except OSError:
            return None  # no locks on this file system
    return None


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk, or its owner's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_explained(
    folder: str | Path, again: str = "which goes on with what is missing", name: str = ""
) -> Iterator[None]:
    """Turn a full disk into one sentence about the ``folder`` (by its ``name``, if it has one), or about the other
    place that was written to; and about what running ``again`` does.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        where = _without_room(Path(folder), f"{name} '{folder}'".lstrip(), error.filename)
        raise Failure(f"{where} ({error.strerror}); make some and run this again, {again}") from error


def _without_room(folder: Path, what: str, written: str | None) -> str:
    """Say which place has no room left; it need not be the folder: caches and temporary files lie elsewhere."""
    if written is not None and not Path(written).absolute().is_relative_to(folder.absolute()):
        return f"the disk of '{written}' has no room left"
    if written is None and _has_room(folder):
        return f"the disk of temporary files or caches has no room left (that of {what} has)"
    return f"{what} has no room left"


def _has_room(folder: Path) -> bool:
    """Whether a megabyte can be written to a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def is_from_dead_process(temporary: Path) -> bool:
    """Whether a file that ``atomic_write`` had begun belongs to a process of this host that lives no more."""
    host, _, pid = temporary.name.removesuffix(".tmp").rpartition("-")
    return host.endswith(f".{socket.gethostname()}") and not Path(f"/proc/{pid}").exists()


def fsync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` (or what a file holds) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_writable_folder(folder: Path, purpose: str) -> None:
    """Create ``folder`` and show that it can be written to, or say in one sentence why it cannot."""
    probe = folder / f".write-test.{socket.gethostname()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{purpose} '{folder}' cannot be written to ({error.strerror}); give a folder that this user may write"
        ) from error
