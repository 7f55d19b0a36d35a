"""Files fetched from object storage by mosaicml-streaming's downloaders, and what their errors mean."""

import errno
import re
import threading
from pathlib import Path
from urllib.parse import urlsplit

from dit_scale.errors import InputError, nearest

_STALL_SECONDS = 60.0
"""A connection that is silent for so long has failed."""
_WRONG_USE = (ValueError, TypeError, ImportError, LookupError, AttributeError, AssertionError, RecursionError)
_ACCESS = re.compile(r"Credential|Authenticat|RefreshError|Profile|Region|InvalidConfig|ConfigFile|ParamValidation")


class Remote:
    """The far side: fetches files, and tells trouble that may pass from trouble that will not."""

    def __init__(self, location: str):
        from streaming.base.storage.download import DOWNLOADER_MAPPINGS  # takes seconds: only where it is needed

        scheme, known = urlsplit(location).scheme, [name for name in DOWNLOADER_MAPPINGS if name]
        if scheme not in known:
            raise InputError(f"'{location}' begins with {scheme}:, which no downloader knows{nearest(scheme, known)}")
        self.location = location
        self._is_proven = False
        self._threads = threading.local()  # not all downloaders may be shared by threads

    def download(self, name: str, path: Path) -> None:
        """Fetch a file, or raise what its downloader raises."""
        from streaming.base.storage.download import CloudDownloader

        if not hasattr(self._threads, "downloader"):
            self._threads.downloader = CloudDownloader.get(self.location)
        self._threads.downloader.download(f"{self.location}/{name}", str(path), _STALL_SECONDS)
        self._is_proven = True

    def raise_where_hopeless(self, name: str, error: Exception) -> None:
        """Raise FileNotFoundError for a missing file, and InputError for what is wrong from the first try on."""
        where, status = f"{self.location}/{name}", _status_of(error)
        if status == 404 or (isinstance(error, FileNotFoundError) and error.filename is None):  # else it is a local one
            raise FileNotFoundError(errno.ENOENT, "is not there", where) from error
        names = {kind.__name__ for kind in type(error).__mro__}
        is_refused = status in (400, 401, 403) or isinstance(error, _WRONG_USE) or any(map(_ACCESS.search, names))
        # Later, it is the service that has a bad moment: credentials that are renewed, a name that is looked up.
        if is_refused and not self._is_proven:
            raise InputError(
                f"'{where}' cannot be fetched ({one_line(error)}); look to the location and to the credentials in the "
                f"environment"
            ) from error


def _status_of(error: Exception) -> int | None:
    """Return the HTTP status with which a service has answered, or None; each provider keeps it elsewhere."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # Amazon
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    candidates = [getattr(error, name, None) for name in ("status_code", "status", "code")]  # Azure, Oracle, Google
    candidates.append(getattr(response, "status_code", None))  # Hugging Face
    return next((int(status) for status in candidates if isinstance(status, int)), None)


def one_line(error: Exception) -> str:
    """Return an error's kind and text in one line of bearable length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
