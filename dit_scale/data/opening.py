"""The one place that knows every kind of storage."""

from pathlib import Path

from dit_scale.data.remote import RemoteStorage
from dit_scale.data.storage import REMOTE, LocalStorage, Storage


def open_storage(
    path: str | Path, *, cache: Path | None = None, cache_bytes: int | None = None, patience_seconds: float = 600.0
) -> Storage:
    """Open a folder, or a location such as ``s3://bucket/folder``, which is read through a cache on this machine.

    ``cache`` is the folder for such caches (by default one in the folder for temporary files), ``cache_bytes`` the
    most that its shards may take. Trouble that may pass is waited for, ``patience_seconds`` at most.
    """
    if match := REMOTE.fullmatch(str(path)):
        scheme, rest = match["scheme"], match["rest"].rstrip("/")
        slashes = "/" if scheme == "dbfs" else "///" if scheme == "alipan" else "//"  # Path has merged them
        return RemoteStorage(f"{scheme}:{slashes}{rest}", cache, cache_bytes, patience_seconds)
    return LocalStorage(path, patience_seconds)
