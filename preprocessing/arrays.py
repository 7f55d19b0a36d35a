"""Tars of latents that others wrote: where each sample's array and label lie, and the arrays."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from dit_scale.errors import InputError
from dit_scale.kinds import TAR, kind_of
from preprocessing.sources.archives import Member, members_of
from preprocessing.sources.names import LeftOut, counted_as, from_bytes, to_bytes
from preprocessing.sources.samples import Parts, Words, label_in, pairs_of, put, without_meta

DTYPES = ("float16", "float32", "float64")


class Sample(NamedTuple):
    """One sample of a tar: its key, its label, and the member that holds its array."""

    key: str
    label: int
    member: Member


class Samples:
    """The samples of a tar in its order, a row of numbers and bytes each: there may be millions of them."""

    def __init__(self, samples: Sequence[Sample]):
        keys = [to_bytes(sample.key) for sample in samples]
        names = [to_bytes(sample.member.name) for sample in samples]
        numbers = [(sample.label, sample.member.offset, sample.member.num_bytes) for sample in samples]
        self._keys, self._names = np.array(keys, "S"), np.array(names, "S")  # as wide as the longest
        self._numbers = np.array(numbers, np.int64).reshape(-1, 3)

    @property
    def labels(self) -> np.ndarray:
        """Of each, int64 [N]."""
        return self._numbers[:, 0]

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Sample]:
        for key, name, numbers in zip(self._keys, self._names, self._numbers, strict=True):
            label, offset, num_bytes = numbers.tolist()
            yield Sample(from_bytes(key), label, Member(from_bytes(name), offset, num_bytes))


class Stored(NamedTuple):
    """An array, and where its numbers begin in the tar."""

    array: np.ndarray
    offset: int

    @property
    def digest(self) -> int:
        """xxh3-64 of the array's bytes."""
        return xxh3_64_intdigest(np.ascontiguousarray(self.array).data)


def samples_of(tar: Path, ending: str, left_out: LeftOut) -> Samples:
    """Return the samples of a tar in its order, by its headers: KEY.``ending`` with KEY.cls or KEY.json (``label``).

    Members of a key need not lie side by side. Raises InputError for an array without a label.
    """
    from webdataset.tariterators import base_plus_ext

    keys: dict[str, Parts] = {}
    words = Words(
        "array",
        f"give --member with more of a name than '{ending}', or name them apart before the first dot, where a key ends",
        "give each array its label",
    )
    with tar.open("rb") as file:
        for member in without_meta(members_of(file, tar, None, left_out, _no_tar), left_out):
            key, extension = base_plus_ext(member.name)
            if key is None:
                left_out[counted_as(member.name)] += 1
            else:
                put(tar, keys.setdefault(key, {}), extension, member)

        def stem_of(extension: str) -> str | None:
            stem, found, rest = f".{extension}".rpartition(f".{ending.lower()}")
            return stem[1:] if found and not rest else None

        pairs = [pair for key, parts in keys.items() for pair in pairs_of(tar, key, parts, stem_of, words, left_out)]
        pairs.sort(key=lambda pair: max(pair[1].offset, pair[2].offset))  # a sample is there once both are
        return Samples([Sample(key, label_in(file, tar, part), member) for key, member, part in pairs])


def read_array(file: BinaryIO, tar: Path, member: Member) -> Stored:
    """Read a member's array; raises InputError for one that cannot be read where it lies."""
    file.seek(member.offset)
    content = file.read(member.num_bytes)
    header = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(header)
        read_header: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, is_fortran, dtype = read_header[version](header)
    except (ValueError, KeyError) as error:
        raise InputError(f"'{member.name}' in '{tar}' is not a whole .npy array; give the right --member") from error
    if is_fortran or dtype.name not in DTYPES or dtype.byteorder == ">":
        raise InputError(
            f"'{member.name}' in '{tar}' holds {dtype} numbers{' by column' if is_fortran else ''}; only little-endian "
            f"{', '.join(DTYPES)} by row can be read where they lie: write them so"
        )
    begin, count = header.tell(), int(np.prod(shape))
    if len(content) - begin != count * dtype.itemsize:
        raise InputError(
            f"'{member.name}' in '{tar}' holds {len(content) - begin} bytes for an array {shape} of {dtype}, which has "
            f"{count * dtype.itemsize}; write it again"
        )
    return Stored(np.frombuffer(content, dtype, offset=begin).reshape(shape), member.offset + begin)


def _no_tar(path: Path) -> str | None:
    kind = kind_of(path)
    return (
        None if kind == TAR else f"'{path}' is {kind}, not an uncompressed tar; give a whole tar of KEY.npy and KEY.cls"
    )
