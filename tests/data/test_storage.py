"""Reading a local folder: trouble that passes is waited for, lasting trouble is named, closing harms no reader."""

import errno
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dit_scale.data import storage as storage_module
from dit_scale.data.opening import open_storage
from dit_scale.data.storage import File, LocalStorage
from dit_scale.errors import Failure

CONTENT = bytes(range(256)) * 16
FILE = File("shard-000000.tar", len(CONTENT))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FILE.name).write_bytes(CONTENT)
    return tmp_path


def _read(storage: Any, file: File = FILE, num_bytes: int = 100, offset: int = 7) -> bytes:
    buffer = bytearray(num_bytes)
    return bytes(buffer[: storage.pread(file, buffer, offset)])


def test_reads_what_lies_there(folder: Path) -> None:
    storage = open_storage(folder)
    assert isinstance(storage, LocalStorage)
    assert _read(storage) == CONTENT[7:107]
    assert storage.content(FILE.name) == CONTENT
    assert storage.check(FILE) is None
    assert storage.folder() == folder
    assert not storage.forget(FILE)
    storage.request([FILE])


def test_what_is_wrong_shows_at_the_door(folder: Path) -> None:
    storage = LocalStorage(folder)
    assert storage.check(File("other.tar", 1)) == "is missing"
    assert storage.check(File(FILE.name, 5)) == f"has {len(CONTENT)} bytes, its manifest says 5"
    with pytest.raises(FileNotFoundError):
        storage.content("manifest.json")
    with pytest.raises(FileNotFoundError):
        LocalStorage(folder / "nowhere").content("manifest.json")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_read_that_fails_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failures, preadv = [number] * 3, os.preadv

    def fails_at_first(descriptor: int, buffers: Any, offset: int) -> int:
        if failures:
            raise OSError(failures.pop(), "trouble")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(storage_module.os, "preadv", fails_at_first)
    assert _read(LocalStorage(folder)) == CONTENT[7:107]
    assert not failures


def test_a_file_system_that_vanishes_is_waited_for(folder: Path) -> None:
    storage = LocalStorage(folder)
    away = folder.with_name("away")
    folder.rename(away)
    threading.Timer(0.3, lambda: away.rename(folder)).start()
    assert _read(storage) == CONTENT[7:107]


def test_patience_ends(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = LocalStorage(folder, patience_seconds=0.5)
    (folder / FILE.name).unlink()
    started = time.monotonic()
    with pytest.raises(Failure, match=rf"'.*{FILE.name}' cannot be read \(No such file or directory\), for 0.5 s"):
        _read(storage)
    assert time.monotonic() - started >= 0.5
    assert "trying again" in caplog.text


def test_a_shard_that_was_cut_reads_short_until_it_is_whole_again(folder: Path) -> None:
    storage = LocalStorage(folder)
    _read(storage)
    with (folder / FILE.name).open("r+b") as file:
        file.truncate(50)
    assert _read(storage) == CONTENT[7:50]
    assert storage.check(FILE) == f"has 50 bytes, its manifest says {len(CONTENT)}"
    (folder / "new").write_bytes(CONTENT)
    (folder / "new").replace(folder / FILE.name)
    assert _read(storage) == CONTENT[7:107]


def test_closing_harms_nobody_who_reads(folder: Path) -> None:
    """A descriptor that is closed under a reader would be another file's in the next moment."""
    other = folder / "other"
    other.write_bytes(b"\xff" * len(CONTENT))
    for _ in range(50):
        storage = LocalStorage(folder)
        wrong: list[bytes] = []
        reading = threading.Event()

        def read_on(storage: LocalStorage = storage, wrong: list[bytes] = wrong, reading: Any = reading) -> None:
            with pytest.raises(ValueError, match="is closed"):
                while True:
                    if (found := _read(storage)) != CONTENT[7:107]:
                        wrong.append(found)
                    reading.set()

        readers = [threading.Thread(target=read_on, daemon=True) for _ in range(2)]
        for reader in readers:
            reader.start()
        assert reading.wait(10)
        storage.close()
        others = [other.open("rb") for _ in range(4)]
        for reader in readers:
            reader.join(10)
            assert not reader.is_alive()
        for file in others:
            file.close()
        assert not wrong


def test_more_shards_than_descriptors(folder: Path) -> None:
    files = [File(f"{number}.tar", 4) for number in range(30)]
    for file in files:
        (folder / file.name).write_bytes(file.name[:4].encode().ljust(4))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    storage = LocalStorage(folder)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 10, hard))
        for file in [*files, *files]:
            assert _read(storage, file, 4, 0) == file.name[:4].encode().ljust(4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_shards_are_closed_with_their_storage(folder: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    storage = LocalStorage(folder)
    _read(storage)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    storage.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
