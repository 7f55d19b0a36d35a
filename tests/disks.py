"""A small disk of its own for a test: it can be full, be given more room, and be made read-only."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class Disk:
    """A tmpfs; what a user may do does not matter on it, so a read-only one is read-only to root, too."""

    def __init__(self, folder: Path):
        self.folder = folder

    def resize(self, num_bytes: int) -> None:
        """Give it so much room in all; it must hold what is there."""
        self._mount(f"remount,size={num_bytes}")

    def fill(self) -> Path:
        """Write a file until there is no room at all; remove it to make some."""
        ballast = self.folder / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(1 << 12)):
                pass
        return ballast

    def make_read_only(self) -> None:
        """Allow no more writing."""
        self._mount("remount,ro")

    def _mount(self, options: str) -> None:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], capture_output=True, text=True
        )
        if mounted.returncode != 0:
            raise OSError(mounted.stderr.strip())


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Disk]:
    """Mount a disk at a new folder for as long as the body runs; where that cannot be, skip, or in CI fail."""
    give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    if os.geteuid() != 0:
        give_up("full and read-only disks are not tested: mounting a tmpfs takes root")
    folder.mkdir()
    disk = Disk(folder)
    try:
        disk._mount(f"size={num_bytes}")
    except OSError as error:
        give_up(f"full and read-only disks are not tested: a tmpfs cannot be mounted ({error})")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
