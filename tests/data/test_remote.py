"""Reading from object storage: a real S3 server, processes that are killed, copies that are spoilt, a small cache."""

import errno
import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dit_scale.data.cache import Cache
from dit_scale.data.dataset import LatentDataset
from dit_scale.data.download import Remote
from dit_scale.data.mds import to_mds
from dit_scale.data.opening import open_storage
from dit_scale.data.remote import RemoteStorage
from dit_scale.data.storage import UNKNOWN_BYTES, File
from dit_scale.errors import Failure, InputError
from tests.data.shard_folder import write_folder
from tests.launch import ROOT
from tests.s3 import BUCKET, S3Server, running_server

SHARD_BYTES = 300_000
FILES = [File(f"shard-{number:06d}.tar", SHARD_BYTES) for number in range(6)]
FORK = multiprocessing.get_context("fork")  # importing mosaicml-streaming takes half a minute here


def _content(file: File) -> bytes:
    return hashlib.shake_128(file.name.encode()).digest(file.num_bytes)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_server() as server:
        for file in FILES:
            server.put(f"a/{file.name}", _content(file))
        server.put("a/shard-000000.npy", b"sidecar")
        yield server


@pytest.fixture
def location(server: S3Server) -> str:
    server.put("a/manifest.json", b"version 1")
    return f"s3://{BUCKET}/a"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(location: str, cache: Path) -> Iterator[Callable[..., RemoteStorage]]:
    storages = []

    def open_one(cache_bytes: int | None = None, patience_seconds: float = 30.0) -> RemoteStorage:
        storage = open_storage(location, cache=cache, cache_bytes=cache_bytes, patience_seconds=patience_seconds)
        assert isinstance(storage, RemoteStorage)
        storages.append(storage)
        return storage

    yield open_one
    for storage in storages:
        storage.close()


def _is_right(storage: Any, file: File, num_bytes: int = 1000) -> bool:
    buffer, offset = bytearray(num_bytes), SHARD_BYTES // 2
    count = storage.pread(file, buffer, offset)
    return count == num_bytes and bytes(buffer) == _content(file)[offset : offset + num_bytes]


def _copies(cache: Path) -> dict[str, Path]:
    return {path.name: path for path in cache.glob("*/*/shards/*")}


def _desks(cache: Path) -> list[Path]:
    return list(cache.glob("*/desk-*"))


def _wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def test_reads_what_lies_there_and_keeps_it(opened: Callable[..., RemoteStorage], cache: Path) -> None:
    first = opened()
    assert first.content("manifest.json") == b"version 1"
    assert first.content("shard-000000.npy") == b"sidecar"
    assert (first.folder() / "shard-000000.npy").read_bytes() == b"sidecar"
    assert all(_is_right(first, file) for file in FILES)
    assert first.check(FILES[0]) is None
    with pytest.raises(FileNotFoundError):
        first.content("rejected.jsonl")
    kept = {name: path.stat().st_ino for name, path in _copies(cache).items()}
    assert len(kept) == len(FILES)
    second = opened()
    assert all(_is_right(second, file) for file in FILES)
    assert {name: path.stat().st_ino for name, path in _copies(cache).items()} == kept
    first.close()
    second.close()
    assert _desks(cache) == []
    with pytest.raises(ValueError, match="is closed"):
        _is_right(first, FILES[0])


def test_a_path_object_is_understood(location: str, cache: Path) -> None:
    storage = open_storage(Path(location), cache=cache)
    assert storage.location == location
    storage.close()


def test_the_cache_is_by_default_this_users_own(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage = open_storage(location)
    own = tmp_path / f"dit_scale-{os.getuid()}"
    assert storage.folder().is_relative_to(own)
    assert own.stat().st_mode & 0o777 == 0o700
    storage.close()


def test_closing_in_the_middle_of_fetching(opened: Callable[..., RemoteStorage], cache: Path) -> None:
    for _ in range(3):
        storage = opened()
        storage.request(FILES)
        time.sleep(0.02)
        storage.close()
    storage = opened()
    assert all(_is_right(storage, file) for file in FILES)


def test_requested_files_come_without_being_read(opened: Callable[..., RemoteStorage], cache: Path) -> None:
    storage = opened()
    storage.request([*FILES[:3], File("shard-000000.npy", UNKNOWN_BYTES)])
    _wait_for(lambda: len(_copies(cache)) == 3 and (storage.folder() / "shard-000000.npy").exists())
    assert all(_is_right(storage, file) for file in FILES)


def test_a_request_never_blocks_and_a_failed_one_is_made_good(
    server: S3Server, opened: Callable[..., RemoteStorage], cache: Path
) -> None:
    storage = opened()
    server.stall()
    try:
        storage.request([*FILES, File("missing.tar", 5)])
        assert not _copies(cache)  # the server is silent still: the call did not wait for it
    finally:
        server.go_on()
    with pytest.raises(InputError, match=r"shard 's3://latents/a/missing.tar' is missing"):
        storage.pread(File("missing.tar", 5), bytearray(5), 0)
    assert all(_is_right(storage, file) for file in FILES)


def test_what_no_patience_mends_is_told_at_once(
    opened: Callable[..., RemoteStorage], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=r"'s3://no-such-bucket/a/manifest.json' is not there; look to the bucket"):
        open_storage("s3://no-such-bucket/a", cache=cache)
    with pytest.raises(InputError, match=r"begins with s4:, which no downloader knows; did you mean 's3'"):
        open_storage("s4://latents/a", cache=cache)
    with pytest.raises(InputError, match=r"has 300000 bytes, its manifest says 5; upload it again"):
        opened(patience_seconds=600.0).pread(File(FILES[0].name, 5), bytearray(5), 0)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"NoCredentialsError.* look to the location and to the credentials"):
        opened(patience_seconds=600.0)
    assert time.monotonic() - started < 300  # half of the patience, which is 600 s for all


def test_a_copy_cut_short_is_fetched_anew(opened: Callable[..., RemoteStorage], cache: Path) -> None:
    """A full disk, or a power cut."""
    storage = opened()
    assert _is_right(storage, FILES[0])
    copy = _copies(cache)[FILES[0].name]
    os.truncate(copy, 1000)
    assert _is_right(opened(), FILES[0])
    os.truncate(copy, 1000)  # also while it is open
    assert _is_right(storage, FILES[0])
    assert copy.stat().st_size == SHARD_BYTES


def test_a_damaged_copy_is_fetched_anew_once(opened: Callable[..., RemoteStorage], cache: Path) -> None:
    storage, other = opened(), opened()
    assert _is_right(storage, FILES[0]) and _is_right(other, FILES[0])
    _copies(cache)[FILES[0].name].write_bytes(bytes(SHARD_BYTES))
    assert not _is_right(storage, FILES[0])
    assert storage.forget(FILES[0])
    assert _is_right(storage, FILES[0])
    assert not storage.forget(FILES[0])
    fresh = _copies(cache)[FILES[0].name].stat().st_ino
    assert not _is_right(other, FILES[0])
    assert other.forget(FILES[0])  # the copy that it has open, which is no longer the one in the cache
    assert _is_right(other, FILES[0])
    assert _copies(cache)[FILES[0].name].stat().st_ino == fresh


def test_another_manifest_is_another_cache(server: S3Server, opened: Callable[..., RemoteStorage], cache: Path) -> None:
    old = opened()
    assert _is_right(old, FILES[0])
    server.put("a/manifest.json", b"version 2")
    new = opened()
    assert new.content("manifest.json") == b"version 2"
    assert new.folder() != old.folder()
    assert _is_right(old, FILES[1])  # it is still in use
    old.close()
    newer = opened()
    assert newer.folder() == new.folder()
    assert not old.folder().exists()


def _fetch_and_hang(location: str, cache: Path) -> None:
    storage = open_storage(location, cache=cache)
    storage.request([File("large.tar", 60_000_000)])
    storage.pread(File("large.tar", 60_000_000), bytearray(10), 0)
    time.sleep(600)


def test_a_killed_process_leaves_nothing_that_hinders(
    server: S3Server, location: str, opened: Callable[..., RemoteStorage], cache: Path
) -> None:
    large = File("large.tar", 60_000_000)
    server.put("a/large.tar", _content(large))
    process = FORK.Process(target=_fetch_and_hang, args=(location, cache), daemon=True)
    process.start()
    _wait_for(lambda: any(path.stat().st_size for path in cache.glob("*/desk-*/*/part*")))
    server.stall()
    process.kill()
    process.join()
    server.go_on()
    assert len(_desks(cache)) == 1 and "large.tar" not in _copies(cache)
    storage = opened()
    assert len(_desks(cache)) == 1  # its own
    assert list(cache.glob("*/desk-*/*/part*")) == []
    buffer = bytearray(1000)
    assert storage.pread(large, buffer, 59_000_000) == 1000
    assert bytes(buffer) == _content(large)[59_000_000:59_001_000]


def test_a_server_that_fails_for_a_while_is_waited_for(
    server: S3Server, opened: Callable[..., RemoteStorage], caplog: pytest.LogCaptureFixture
) -> None:
    storage = opened()
    server.stop()
    failed = f"'s3://latents/a/{FILES[0].name}' cannot be fetched (EndpointConnectionError"
    restart = threading.Thread(target=_start_once_told, args=(server, caplog, failed))
    restart.start()
    storage.request(FILES[1:3])
    assert all(_is_right(storage, file) for file in FILES[:3])
    restart.join()
    assert failed in caplog.text


def _start_once_told(server: S3Server, caplog: pytest.LogCaptureFixture, failed: str) -> None:
    deadline = time.monotonic() + 60
    while failed not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.05)
    server.start()


def test_patience_ends(server: S3Server, opened: Callable[..., RemoteStorage]) -> None:
    storage = opened(patience_seconds=1.0)
    server.stop()
    try:
        with pytest.raises(Failure, match=r"shard-000000.tar' cannot be fetched \(EndpointConnectionError.*, for 1 s;"):
            _is_right(storage, FILES[0])
    finally:
        server.start()
    assert _is_right(storage, FILES[0])


def test_a_cache_smaller_than_a_shard_is_refused(opened: Callable[..., RemoteStorage]) -> None:
    with pytest.raises(InputError, match=r"has 300000 bytes, but data.cache_bytes=299999; give several times"):
        opened(cache_bytes=SHARD_BYTES - 1).check(FILES[0])


def test_the_shards_not_read_for_longest_make_room(opened: Callable[..., RemoteStorage], cache: Path) -> None:
    storage = opened(cache_bytes=3 * SHARD_BYTES)
    for file in [*FILES[:3], FILES[0], *FILES[3:5]]:
        assert _is_right(storage, file)
        time.sleep(0.02)
    assert _copies(cache).keys() == {FILES[0].name, FILES[3].name, FILES[4].name}
    assert set(storage._open) == _copies(cache).keys()  # what was removed is closed, which frees its space


def test_what_is_requested_stays_until_it_is_read(opened: Callable[..., RemoteStorage], cache: Path) -> None:
    storage = opened(cache_bytes=3 * SHARD_BYTES)
    storage.request(FILES[:2])
    _wait_for(lambda: len(_copies(cache)) == 2)
    assert all(_is_right(storage, file) for file in FILES[2:])
    assert {FILES[0].name, FILES[1].name} < _copies(cache).keys()
    storage.request(FILES[2:5])  # more than there is room for: they wait, and what is unread stays
    assert _is_right(storage, FILES[0]) and _is_right(storage, FILES[1])
    _wait_for(lambda: {FILES[2].name, FILES[3].name, FILES[4].name} == _copies(cache).keys())


def test_a_file_counts_once_while_it_comes(cache: Path) -> None:
    folder = Cache(cache, "s3://bucket/folder", 2 * SHARD_BYTES, patience_seconds=1.0)
    folder.use("version")
    with folder.room(FILES[0], (), may_displace=False) as has_room, folder.part() as part:
        assert has_room
        part.write_bytes(_content(FILES[0]))
        folder.add(part, FILES[0])
        for file, is_room in ((FILES[1], True), (File(FILES[1].name, SHARD_BYTES + 1), False)):
            with folder.room(file, (FILES[0].name,), may_displace=False) as has_room:
                assert has_room is is_room
    folder.close()


def _read_all(location: str, cache: Path, cache_bytes: int | None, results: Any) -> None:
    storage: Any = open_storage(location, cache=cache, cache_bytes=cache_bytes, patience_seconds=60)
    inodes = {}
    files = [*FILES, *FILES[:2]]
    for place, file in enumerate(files):
        storage.request(files[place : place + 2])
        assert _is_right(storage, file)
        inodes[file.name] = os.fstat(storage._open[file.name].number).st_ino
    storage.close()
    results.put(inodes)


@pytest.mark.parametrize("cache_shards", [None, 3])
def test_processes_share_a_cache(location: str, cache: Path, cache_shards: int | None) -> None:
    results = FORK.Queue()
    cache_bytes = cache_shards and cache_shards * SHARD_BYTES
    arguments = (location, cache, cache_bytes, results)
    processes = [FORK.Process(target=_read_all, args=arguments, daemon=True) for _ in range(3)]
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        most = max(most, len(_copies(cache)))
        time.sleep(0.005)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    inodes = [results.get(timeout=10) for _ in processes]
    assert _desks(cache) == []
    if cache_shards is None:
        assert inodes[0] == inodes[1] == inodes[2]  # each was fetched once
    else:
        assert most <= cache_shards


@pytest.mark.parametrize("kind", ["tar", "mds"])
def test_a_dataset_there_is_the_dataset_here(server: S3Server, tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path / "tar", [5, 4])
    to_mds(tmp_path / "tar", tmp_path / "mds")
    here = LatentDataset.open(tmp_path / kind)
    there = LatentDataset.open(server.upload(tmp_path / kind, f"of-{kind}"), cache=tmp_path / "cache")
    indices, mirrored = np.arange(9), np.arange(9) % 2 == 1
    there.request(indices)
    for mine, theirs in zip(here.read(indices, mirrored), there.read(indices, mirrored), strict=True):
        assert mine.equal(theirs)
    copy = next(iter(_copies(tmp_path / "cache").values()))
    copy.write_bytes(bytes(copy.stat().st_size))  # damage here is mended from there
    for mine, theirs in zip(here.read(indices, mirrored), there.read(indices, mirrored), strict=True):
        assert mine.equal(theirs)
    there.close()


def test_crops_there_are_fetched_for_those_who_ask(server: S3Server, tmp_path: Path) -> None:
    written, cache = write_folder(tmp_path / "here", [5, 4], with_crops=True), tmp_path / "cache"
    location, indices = server.upload(tmp_path / "here", "crops"), np.arange(9)
    for with_crops in (False, True):
        there = LatentDataset.open(location, cache=cache, with_crops=with_crops)
        there.request(indices)
        there.read(indices, np.zeros(9, bool))
        count = 4 if with_crops else 2
        _wait_for(lambda count=count: len(_copies(cache)) == count)
        assert any(name.endswith(".crops") for name in _copies(cache)) == with_crops
        if with_crops:
            copy = _copies(cache)["shard-000001.crops"]
            copy.write_bytes(bytes(copy.stat().st_size))  # damage here is fixed from there
            crops, damaged = there.read_crops(indices, np.zeros(9, bool))
            assert not damaged
            assert all(np.array_equal(crop, record.crop) for crop, record in zip(crops.numpy(), written, strict=True))
        there.close()


def test_a_thread_that_fetches_holds_up_no_exit() -> None:
    script = """
import time
from dit_scale.data.ahead import Ahead
from dit_scale.data.storage import File
ahead = Ahead(lambda file: time.sleep(1000))
ahead.request([File(str(number), 1) for number in range(10)])
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, check=True)


class _Answer(Exception):
    """An error of a downloader, with where it keeps its HTTP status."""

    def __init__(self, **places: Any):
        super().__init__("no")
        self.__dict__.update(places)


@pytest.mark.parametrize("place", ["status_code", "status", "code"])
def test_the_answers_of_other_services(location: str, place: str) -> None:
    remote = Remote("gs://latents/a")
    with pytest.raises(FileNotFoundError):
        remote.raise_where_hopeless("x", _Answer(**{place: 404}))
    with pytest.raises(InputError, match="credentials"):
        remote.raise_where_hopeless("x", _Answer(**{place: 403}))
    remote.raise_where_hopeless("x", _Answer(**{place: 503}))  # passes
    with pytest.raises(FileNotFoundError):
        remote.raise_where_hopeless("x", FileNotFoundError("Object gs://latents/a/x not found"))
    remote.raise_where_hopeless("x", FileNotFoundError(errno.ENOENT, "No such file", "/cache/desk"))


def test_a_refusal_after_the_first_success_is_waited_for(location: str, tmp_path: Path) -> None:
    remote = Remote(location)
    remote.download("manifest.json", tmp_path / "manifest.json")
    remote.raise_where_hopeless("x", _Answer(response={"ResponseMetadata": {"HTTPStatusCode": 403}}))
