"""Shard folders in object storage: fetched by mosaicml-streaming's downloaders into a cache on this machine.

Only its downloaders are used. Its StreamingDataset keeps locks and shared memory that outlive a process that is killed;
here nothing does.
"""

import errno
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from dit_scale.data.ahead import Ahead
from dit_scale.data.cache import Cache
from dit_scale.data.download import Remote, one_line
from dit_scale.data.manifest import FILE_NAME
from dit_scale.data.storage import UNKNOWN_BYTES, Descriptor, File, OpenShards
from dit_scale.errors import Failure, InputError
from dit_scale.retries import RetryPolicy, with_retries

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS_FOR_ROOM = 0.5

_Result = TypeVar("_Result")


class RemoteStorage(OpenShards):
    """A shard folder in object storage, read through a cache that the processes of this machine share."""

    def __init__(self, location: str, cache: Path | None, cache_bytes: int | None, patience_seconds: float):
        super().__init__(location, patience_seconds)
        self._remote = Remote(location)
        self._cache_bytes = cache_bytes
        self._cache = Cache(cache, location, cache_bytes, patience_seconds)
        self._ahead = Ahead(self._fetch_ahead)
        self._forgotten: set[str] = set()
        try:
            self._fetch_manifest()
        except BaseException:
            self.close()
            raise

    def content(self, name: str) -> bytes:
        """Return a small file whole; raises FileNotFoundError where it is not there."""
        file = File(name, UNKNOWN_BYTES)
        path = self._cache.path(file)
        if not path.exists():
            self._fetch(file)
        self._ahead.begin_reading(name)
        return path.read_bytes()

    def check(self, file: File) -> str | None:
        """Return None: a shard's size shows when it is fetched; raises InputError where the cache is too small."""
        if self._cache_bytes is not None and file.num_bytes > self._cache_bytes:
            raise InputError(
                f"shard '{self.location}/{file.name}' has {file.num_bytes} bytes, but data.cache_bytes="
                f"{self._cache_bytes}; give several times the size of a shard"
            )
        return None

    def request(self, files: Sequence[File]) -> None:
        """Have threads fetch these files, in this order; they are kept until they are read, if there is room."""
        self._ahead.request([file for file in files if file.name not in self._open])

    def forget(self, file: File) -> bool:
        """Drop this machine's copy of a damaged file, so that it is fetched again; True the first time only."""
        if file.name in self._forgotten:
            return False
        self._forgotten.add(file.name)
        self._cache.remove(file, self._open.pop(file.name, None))
        return True

    def folder(self) -> Path:
        """Return the cache's folder of small files."""
        return self._cache.folder

    def close(self) -> None:
        """End the threads, without waiting for those that are fetching, and clear what is half fetched."""
        super().close()
        self._ahead.close()
        self._cache.close()

    def _fetch_manifest(self) -> None:
        """Fetch the manifest, which may have changed since the last time: its digest names the version."""
        file = File(FILE_NAME, UNKNOWN_BYTES)
        with self._cache.part() as part:
            try:
                self._patiently(lambda: self._remote.download(file.name, part), file)
            except FileNotFoundError as error:
                raise InputError(
                    f"'{self.location}/{FILE_NAME}' is not there; look to the bucket's name and the path, or upload "
                    f"the whole shard folder"
                ) from error
            self._cache.use(hashlib.sha256(part.read_bytes()).hexdigest()[:16])
            self._cache.add(part, file)

    def _open_shard(self, file: File) -> Descriptor:
        self.check(file)
        self._mark_used()
        try:
            descriptor = self._cache.open(file) or self._fetch(file)
        except FileNotFoundError as error:
            raise InputError(
                f"shard '{self.location}/{file.name}' is missing; upload it, or the whole shard folder, again"
            ) from error
        self._ahead.begin_reading(file.name)
        self._let_go()
        return descriptor

    def _mark_used(self) -> None:
        """Mark the shards read of late, lest they be the ones that make room."""
        if self._cache_bytes is not None:
            for descriptor in list(self._open.values()):
                if descriptor.was_read:
                    descriptor.was_read = False
                    self._cache.touch(descriptor)

    def _let_go(self) -> None:
        """Close shards that have been removed from the cache, which frees their space."""
        if self._cache_bytes is not None:
            for name, descriptor in list(self._open.items()):
                if not descriptor.is_linked:
                    self._open.pop(name, None)

    def _fetch(self, file: File) -> Descriptor:
        """Fetch a file for which somebody waits."""
        deadline = time.monotonic() + self._patience_seconds
        while not self._closed.is_set():
            if descriptor := self._patiently(lambda: self._try_to_fetch(file, may_displace=True), file):
                return descriptor
            if time.monotonic() > deadline:
                raise Failure(
                    f"cache folder '{self._cache.folder}' has had no room for '{file.name}' for "
                    f"{self._patience_seconds:g} s, as other processes fill it; give more data.cache_bytes"
                )
            self._closed.wait(_SECONDS_BETWEEN_LOOKS_FOR_ROOM)
        raise ValueError(f"'{self.location}' is closed")

    def _fetch_ahead(self, file: File) -> None:
        """Fetch a file that will be read soon; where that fails, whoever reads it tries again, and says why."""
        try:
            while self._ahead.is_wanted(file.name) and not self._closed.is_set():
                if self._patiently(lambda: self._try_to_fetch(file, may_displace=False), file, logging.DEBUG):
                    return
                self._closed.wait(_SECONDS_BETWEEN_LOOKS_FOR_ROOM)
        except Exception as error:
            log.debug("'%s/%s' was not fetched ahead: %s", self.location, file.name, error)

    def _try_to_fetch(self, file: File, may_displace: bool) -> Descriptor | None:
        """Fetch a file unless it is here by now; return None where the cache has no room for it."""
        with self._cache.only_one(file):
            if descriptor := self._cache.open(file):
                return descriptor
            with self._cache.room(file, self._ahead.names(), may_displace) as has_room, self._cache.part() as part:
                if not has_room:
                    return None
                self._remote.download(file.name, part)
                num_bytes = part.stat().st_size
                if file.num_bytes not in (UNKNOWN_BYTES, num_bytes):
                    raise _WrongSizeError(num_bytes)
                return self._cache.add(part, file)

    def _patiently(self, action: Callable[[], _Result], file: File, log_level: int = logging.WARNING) -> _Result:
        sizes: list[int] = []
        retries = RetryPolicy(self._patience_seconds, self._closed, log_level)
        return with_retries(action, lambda error: self._trouble(file, error, sizes), retries)

    def _trouble(self, file: File, error: Exception, sizes: list[int]) -> str:
        """Return what went wrong, or raise what no retry can fix."""
        where = f"{self.location}/{file.name}"
        if isinstance(error, InputError | Failure):
            raise error
        if isinstance(error, _WrongSizeError):
            sizes.append(error.num_bytes)
            if len(sizes) > 1:  # the first may have been cut short on the way
                raise InputError(
                    f"shard '{where}' has {error.num_bytes} bytes, its manifest says {file.num_bytes}; upload it again"
                ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"cache folder '{self._cache.folder}' has no room left for '{where}'; make some, give another "
                f"data.cache (inspect: --cache), or data.cache_bytes less than the room that there is"
            ) from error
        self._remote.raise_where_hopeless(file.name, error)
        return f"'{where}' cannot be fetched ({one_line(error)})"


class _WrongSizeError(Exception):
    """A file came with another size than it must have."""

    def __init__(self, num_bytes: int):
        super().__init__(f"it came with {num_bytes} bytes")
        self.num_bytes = num_bytes
