"""What a file is by its first bytes, whatever its ending, for sentences about one that is not what was asked for."""

import zipfile
from pathlib import Path

NPZ, ZIP, TAR, TORCH, PICKLE = "an .npz archive", "a zip archive", "a tar", "a file of torch.save", "a pickle"
SAFETENSORS, GZIP, NPY = "a safetensors file", "a gzip-compressed file", "a .npy array"
_BY_FIRST_BYTES = (
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9", TORCH),  # before torch 1.6
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"\x93NUMPY", NPY),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x1f\x8b", GZIP),
    (b"\x28\xb5\x2f\xfd", "a zstd-compressed file"),
    (b"\xfd7zXZ\0", "an xz-compressed file"),
    (b"BZh", "a bzip2-compressed file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"version https://git-lfs", "a pointer of Git LFS to a file that was not fetched"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)
_TAR_MAGIC_AT = 257


def kind_of(path: Path) -> str:
    """Return in words what a file is; what is not known is ``a file``, nothing is ``an empty file``."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    if not head:
        return "an empty file"
    if head[:2] == b"PK":
        return _kind_of_zip(path)
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return TAR
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return SAFETENSORS
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "an image"
    named = next((kind for first, kind in _BY_FIRST_BYTES if head.startswith(first)), "a file")
    return PICKLE if named == "a file" and head[0] == 0x80 and head[1] in (2, 3, 4, 5) else named


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return NPZ if path.suffix.lower() == ".npz" else ZIP
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return TORCH
    return NPZ if names and all(name.endswith(".npy") for name in names) else ZIP
