"""Tars of latents that others wrote: where each sample's array and label lie, found once."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from xxhash import xxh3_64_intdigest

from dit_scale.documents import parsed_or_none
from dit_scale.errors import InputError
from dit_scale.kinds import TAR, kind_of

DTYPES = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Sample:
    """One sample of a webdataset tar."""

    key: str
    label: int
    offset: int
    """Where the array's numbers begin in the tar."""
    shape: tuple[int, ...]
    dtype: str
    array: np.ndarray

    @property
    def digest(self) -> int:
        """xxh3-64 of the array's bytes."""
        return xxh3_64_intdigest(np.ascontiguousarray(self.array).data)


def samples(tar: Path, ending: str = "npy") -> Iterator[Sample]:
    """Yield the samples of a tar in its order: KEY.``ending`` (an array) with KEY.cls or KEY.json (``label``).

    Raises InputError for a sample without label, or an array that is not plain numbers.
    """
    from webdataset.tariterators import base_plus_ext

    arrays: dict[str, tuple[int, np.ndarray]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                key, extension = base_plus_ext(member.name)
                if not member.isfile() or key is None:
                    continue
                content = archive.extractfile(member)
                assert content is not None
                if extension == ending:
                    arrays[key] = _array(tar, member, content.read())
                elif extension in ("cls", "json"):
                    labels[key] = _label(tar, member.name, content.read())
                if key in arrays and key in labels:
                    offset, array = arrays.pop(key)
                    yield Sample(key, labels.pop(key), offset, array.shape, array.dtype.name, array)
    except tarfile.TarError as error:
        kind = kind_of(tar)
        how = f"not whole ({error})" if kind == TAR else f"{kind}, not an uncompressed tar"
        raise InputError(f"'{tar}' is {how}; give a whole tar of KEY.npy and KEY.cls") from error
    if arrays:
        raise InputError(f"'{tar}' holds '{min(arrays)}.{ending}' but no '{min(arrays)}.cls'; give each its label")


def sha256_and_size(tar: Path) -> tuple[str, int]:
    """Return a tar's SHA-256 and its size in bytes."""
    with tar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), tar.stat().st_size


def _array(tar: Path, member: tarfile.TarInfo, content: bytes) -> tuple[int, np.ndarray]:
    """Return where an npy member's numbers begin in the tar, and the array."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, is_fortran, dtype = read_header[version](file)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"'{member.name}' in '{tar}' is not an npy array ({error}); give the right --member"
        ) from error
    if is_fortran or dtype.name not in DTYPES or dtype.byteorder == ">":
        raise InputError(
            f"'{member.name}' in '{tar}' holds {dtype} numbers{' by column' if is_fortran else ''}; only little-endian "
            f"{', '.join(DTYPES)} by row can be read where they lie: write them so"
        )
    begin = file.tell()
    array = np.frombuffer(content, dtype, offset=begin).reshape(shape)
    return member.offset_data + begin, array


class _Labelled(TypedDict):
    label: int


def _label(tar: Path, name: str, content: bytes) -> int:
    if name.endswith(".json"):
        found = parsed_or_none(content, _Labelled)
        label = -1 if found is None else found["label"]
    else:
        label = int(content) if content.strip().isdigit() else -1
    if label < 0:
        excerpt = content[:40].decode("utf-8", "replace").strip()
        raise InputError(f"'{name}' in '{tar}' gives no class number ('{excerpt}'); write 0, 1, 2, … as text")
    return label
