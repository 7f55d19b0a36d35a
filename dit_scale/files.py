"""Files that are whole or absent: written under a temporary name, fsynced, renamed."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dit_scale.errors import InputError

log = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears at ``path`` only once it is complete and on disk.

    The temporary name holds host and process, so two writers never share one; it is removed on failure.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with temporary.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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


def fsync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut."""
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
