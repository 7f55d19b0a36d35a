"""What is given as a source and is not read: archives, tables and arrays, each with what turns it into a source."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from dit_scale.image_files import is_hidden
from dit_scale.kinds import GZIP, NPY, NPZ, PICKLE, TORCH, ZIP, kind_of

_TABLE = 'write its images to class folders, as docs/data.md shows under "Sources that are not read"'
_ARRAY = "write its images to class folders, a file each"
_UNPACK = "unpack it and give the folder"
_DECOMPRESS = (
    "unpack it with 'mkdir {folder} && tar -xf {path} -C {folder}' and give {folder} or, where it holds webdataset's "
    "samples or a tar a class, 'PROGRAM -dc {path} > {tar}' and give {tar}"
)
_ADVICE = {
    "a Parquet table": _TABLE,
    "an Arrow table": _TABLE,
    ZIP: "unpack it with 'python -m zipfile -e {path} {folder}' and give {folder}",
    GZIP: _DECOMPRESS.replace("PROGRAM", "gzip"),
    "a bzip2-compressed file": _DECOMPRESS.replace("PROGRAM", "bzip2"),
    "an xz-compressed file": _DECOMPRESS.replace("PROGRAM", "xz"),
    "a zstd-compressed file": _DECOMPRESS.replace("PROGRAM", "zstd"),
    "a 7z archive": _UNPACK,
    "a RAR archive": _UNPACK,
    "an image": "give the folder of class folders it lies in",
} | dict.fromkeys((NPY, NPZ, "an HDF5 file", TORCH, PICKLE), _ARRAY)
"""What to do about each kind of file."""
_ENDINGS = frozenset(
    {".parquet", ".arrow", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".h5", ".hdf5", ".npy", ".npz"}
)
"""Of files that are looked at in a folder without images."""


def foreign_file(path: Path, name: str | None = None) -> str | None:
    """Return a sentence for a file that is no source but may become one, or None for any other file."""
    kind = kind_of(path)
    if kind not in _ADVICE:
        return None
    stem = path.name.partition(".")[0] or "images"
    places = {"path": path, "folder": path.with_name(f"{stem}-unpacked"), "tar": path.with_name(f"{stem}-unpacked.tar")}
    advice = _ADVICE[kind].format_map({key: shlex.quote(str(place)) for key, place in places.items()})
    return f"'{name or path}' is {kind}, which is not read as a source: {advice}"


def foreign_below(folder: Path) -> str | None:
    """Return the sentence for the first such file below a folder, or None where there is none.

    Names are taken in order, a folder's files before its folders, and nothing is listed beyond the first such file.
    """
    sentences = (foreign_file(path, str(path.relative_to(folder))) for path in _files_below(folder))
    return next(filter(None, sentences), None)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files that may be such ones; a folder is listed when those before it have been looked at."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in _ENDINGS and not is_hidden(name) and path.is_file():
                yield path
