"""What is given as a source and is not read: archives, tables and arrays, each with what turns it into a source."""

import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from preprocessing.sources.names import is_hidden, is_image

_TABLE = 'write its images to class folders, as docs/data.md shows under "Sources that are not read"'
_UNPACK = (
    "unpack it with 'mkdir {folder} && tar -xf {path} -C {folder}' and give {folder} or, where it holds webdataset's "
    "samples or a tar a class, 'UNZIP -dc {path} > {tar}' and give {tar}"
)
_KINDS = (
    (b"PAR1", "a Parquet table", _TABLE),
    (b"ARROW1", "an Arrow table", _TABLE),
    (b"PK\x03\x04", "a zip archive", "unpack it with 'python -m zipfile -e {path} {folder}' and give {folder}"),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK.replace("UNZIP", "gzip")),
    (b"BZh", "compressed by bzip2", _UNPACK.replace("UNZIP", "bzip2")),
    (b"\xfd7zXZ\0", "compressed by xz", _UNPACK.replace("UNZIP", "xz")),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK.replace("UNZIP", "zstd")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the folder"),
    (b"Rar!", "a RAR archive", "unpack it and give the folder"),
    (b"\x89HDF\r\n", "an HDF5 file", "write its images to class folders"),
    (b"\x93NUMPY", "a numpy array", "write its images to class folders"),
    (b"\xff\xd8\xff", "one image", "give the folder of class folders it lies in"),
    (b"\x89PNG", "one image", "give the folder of class folders it lies in"),
)
"""How a file begins, what it is, and what takes it."""
_ENDINGS = frozenset(
    {".parquet", ".arrow", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".h5", ".hdf5", ".npy", ".npz"}
)
_IS = "is {what}, which is not read as a source: {advice}"


def foreign_file(path: Path) -> str | None:
    """Return a sentence for a file that is no source but may become one, or None for any other file."""
    with path.open("rb") as file:
        found = _kind_of(file)
    return f"'{path}' {_said(path, *found)}" if found else None


def foreign_below(folder: Path) -> str | None:
    """Return what to do about the first such file below a folder, or None where there is none."""
    paths = (path for path in _files_below(folder) if path.suffix.lower() in _ENDINGS)
    for path in paths:
        with path.open("rb") as file:
            found = _kind_of(file)
        if found:
            return f"'{path.relative_to(folder)}' in it {_said(path, *found)}"
    return None


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not is_hidden(path.name):
            yield path


def _kind_of(file: BinaryIO) -> tuple[str, str] | None:
    head = file.read(16)
    for start, what, advice in _KINDS:
        if head.startswith(start):
            if what == "a zip archive" and not _holds_images(file):
                return "a zip archive without images", "give images as files"
            return what, advice
    return None


def _holds_images(file: BinaryIO) -> bool:
    """Return whether a zip holds images; .npz and .pt are zips that do not."""
    try:
        return any(map(is_image, zipfile.ZipFile(file).namelist()))
    except zipfile.BadZipFile:
        return True


def _said(path: Path, what: str, advice: str) -> str:
    stem = path.name.partition(".")[0] or "images"
    folder, tar = (path.with_name(f"{stem}-unpacked{ending}") for ending in ("", ".tar"))
    names = {"path": path, "folder": folder, "tar": tar}
    return _IS.format(what=what, advice=advice.format_map({key: shlex.quote(str(name)) for key, name in names.items()}))
