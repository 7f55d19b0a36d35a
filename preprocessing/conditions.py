"""What a condition needs of a record beside its label: an array, from a file beside each image.

For ``a/0.jpg`` and an array called text that is ``a/0.text.npy``, as the member of a record is ``KEY.text.npy``.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from dit_scale.conditioning import RecordArray, condition_named
from dit_scale.config import EncodeConfig
from dit_scale.errors import InputError
from preprocessing.sources import Place, Source
from preprocessing.sources.names import LeftOut

_THREADS = 8
"""Reading small files is waiting, above all on networked storage."""

Arrays = Mapping[str, np.ndarray]


def arrays_of(config: EncodeConfig) -> tuple[RecordArray, ...]:
    """Return what records hold for the condition asked for; raises InputError for one that needs labels alone."""
    if config.condition is None:
        return ()
    stored = condition_named(config.condition, "condition").stored
    if stored is None:
        raise InputError(f"condition={config.condition} reads no array; leave it out: every record has its label")
    return (stored,)


def check_beside(source: Source, arrays: Sequence[RecordArray]) -> None:
    """Raise InputError for an image without its file of each array; each folder is looked into once.

    These files are no longer counted as left out of the listing.
    """
    for array in arrays:
        for place in map(source.place, range(len(source))):
            path = _beside(place, array)
            if path.name not in _names_in(path.parent):
                raise InputError(f"image '{place.path}' has no '{path.name}' beside it; write {_form(array)} there")
        source.left_out -= LeftOut({".npy": len(source)})
    _names_in.cache_clear()


class ReadBeside:
    """Reads the arrays of records, several at once, while the images are encoded."""

    def __init__(self, source: Source, arrays: Sequence[RecordArray]):
        self._source, self._arrays = source, arrays
        self._threads = ThreadPoolExecutor(_THREADS, "read-beside")

    def close(self) -> None:
        """End without waiting for a read that hangs in storage."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def ahead(self, indices: Sequence[int]) -> list[Callable[[], Arrays]]:
        """Begin to read the arrays of these images; return what waits for those of each."""
        if not self._arrays:
            return [dict] * len(indices)
        return [self._threads.submit(self._read, self._source.place(index)).result for index in indices]

    def _read(self, place: Place) -> Arrays:
        return {array.name: read_array(_beside(place, array), array) for array in self._arrays}


def read_array(path: Path, array: RecordArray) -> np.ndarray:
    """Return a file's array; raises InputError for another or none, and Failure for storage that fails."""
    content = Place(path, 0, -1).read()
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"'{path}' is not a whole .npy array; write {_form(array)}") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.dtype(array.dtype) or found.shape != array.shape:
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "several arrays"
        raise InputError(f"'{path}' holds {what}; write {_form(array)}, which the condition reads")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise InputError(f"'{path}' holds numbers that are not finite; write others")
    return found


def _beside(place: Place, array: RecordArray) -> Path:
    if place.num_bytes >= 0:
        raise InputError(
            f"condition reads a file beside each image, and those of '{place.path}' lie in a tar; unpack it to class "
            f"folders, or leave condition out"
        )
    return place.path.with_suffix(f".{array.name}.npy")


def _form(array: RecordArray) -> str:
    return f"{array.dtype} {list(array.shape)} by numpy.save"


@lru_cache(maxsize=16)
def _names_in(folder: Path) -> frozenset[str]:
    return frozenset(entry.name for entry in folder.iterdir())
