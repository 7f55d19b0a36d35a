"""Members of uncompressed tars by their headers alone: a tar, or a tar inside a tar, is never unpacked."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from dit_scale.errors import InputError
from dit_scale.image_files import is_hidden
from preprocessing.sources.foreign import foreign_file
from preprocessing.sources.names import LeftOut, base_of, counted_as, is_image

_BLOCK_BYTES = 512


class Member(NamedTuple):
    """A regular file in a tar, and where its bytes lie in the file that was opened."""

    name: str
    offset: int
    num_bytes: int


def tars_of(path: Path) -> list[Path]:
    """Return the tar itself, or the tars in a folder by name."""
    if path.is_file():
        return [path]
    tars = (entry for entry in path.iterdir() if entry.suffix.lower() == ".tar" and not is_hidden(entry.name))
    return sorted((tar for tar in tars if tar.is_file()), key=lambda tar: tar.name.encode("utf-8", "surrogateescape"))


def members_of(
    file: BinaryIO,
    path: Path,
    inner: Member | None = None,
    left_out: LeftOut | None = None,
    what_else: Callable[[Path], str | None] = foreign_file,
) -> Iterator[Member]:
    """Yield the regular files of a tar, or of a tar inside it, in its order; hidden ones are left out and counted.

    ``what_else`` returns the sentence for a file that is no tar, where it knows it.
    """
    start, end = (0, path.stat().st_size) if inner is None else (inner.offset, inner.offset + inner.num_bytes)
    what = f"'{path}'" if inner is None else f"'{inner.name}' in '{path}'"
    try:
        file.seek(start)
        archive = tarfile.TarFile(fileobj=file, tarinfo=_Header, encoding="utf-8", errors="surrogateescape")
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else a million of them stay in memory
            if info.offset_data + info.size > end:
                raise tarfile.ReadError(f"member '{info.name}' goes beyond its end")
            if is_hidden(base_of(info.name)):
                if left_out is not None and not info.isdir():
                    left_out[counted_as(info.name)] += 1
                continue
            if info.isreg() and not info.issparse():
                yield Member(info.name, info.offset_data, info.size)
            elif is_image(info.name) and not info.isdir():
                raise InputError(
                    f"image '{info.name}' in {what} is a link or sparse, not plain bytes; make the tar with "
                    f"--dereference --hard-dereference"
                )
        _check_end(file, archive.offset, end)
    except tarfile.TarError as error:
        if inner is None and (foreign := what_else(path)):
            raise InputError(foreign) from error
        raise InputError(f"{what} is not a whole, uncompressed tar ({error}); give another or fix it") from error


class _Header(tarfile.TarInfo):
    """A header of which no more is read than a listing needs, in a third of the time."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read name and size of a plain file; whatever is not as plain is left to tarfile."""
        is_plain = buf[156:157] in (b"0", b"\0") and buf[345:346] == b"\0" and buf[124:125] < b"8"
        try:
            checksum, size = (int(field.strip(b" \0"), 8) for field in (buf[148:156], buf[124:136]))
        except ValueError:
            is_plain = False
        if not is_plain or checksum != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)
        name = buf[:100].partition(b"\0")[0]
        if name.endswith(b"/"):  # a folder of old
            return super().frombuf(buf, encoding, errors)
        header = cls(name.decode(encoding, errors))
        header.size, header.type = size, bytes(buf[156:157])
        return header


def _check_end(file: BinaryIO, offset: int, end: int) -> None:
    """Raise ReadError unless a tar ends with a block of zeros; tarfile takes damage for its end, too."""
    file.seek(offset)
    block = file.read(min(_BLOCK_BYTES, max(0, end - offset)))
    if len(block) < _BLOCK_BYTES:
        raise tarfile.ReadError("it is cut off: no block of zeros ends it")
    if any(block):
        raise tarfile.ReadError(f"the header at byte {offset} is damaged")
