"""The byte layout of a record: two members of a plain tar, at a fixed stride.

A record is ``KEY.npy`` (fp16 moments with a leading axis for the mirrors, [M, 2C, h, w]) and ``KEY.cls`` (the label as
text). Headers are USTAR and the npy header fills 512 bytes, so record ``i`` of a shard begins at ``i * stride`` and
its moments at a computed offset; any tar or webdataset reader reads the same shard by parsing it.
"""

import math
import struct
import tarfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOMENTS_DTYPE = np.dtype("<f2")
END_OF_SHARD = bytes(2 * tarfile.BLOCKSIZE)
"""Two empty blocks end a tar."""
KEY_DIGITS = 10
_NPY_HEADER_BYTES = 512
_PAYLOAD_OFFSET = tarfile.BLOCKSIZE + _NPY_HEADER_BYTES


def key_of(source_index: int) -> str:
    """Return the key of the record of a source image: its running number, in a fixed width."""
    return f"{source_index:0{KEY_DIGITS}d}"


@dataclass(frozen=True)
class RecordLayout:
    """Where the bytes of a record lie."""

    mirrors: int
    """1: the image alone; 2: the image, then its mirror image (horizontal flip)."""
    moments_shape: tuple[int, int, int]

    @property
    def mirror_bytes(self) -> int:
        """Bytes of one mirror's moments."""
        return math.prod(self.moments_shape) * MOMENTS_DTYPE.itemsize

    @property
    def stride_bytes(self) -> int:
        """Bytes from one record to the next: two headers, the npy file and the label, each in whole blocks."""
        npy_bytes = _NPY_HEADER_BYTES + self.mirrors * self.mirror_bytes
        return 2 * tarfile.BLOCKSIZE + _whole_blocks(npy_bytes) + tarfile.BLOCKSIZE

    def shard_bytes(self, records: int) -> int:
        """Return the size of a shard."""
        return records * self.stride_bytes + len(END_OF_SHARD)

    def offsets(self, records: npt.NDArray[np.int64], mirrors: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where in their shards these records' moments of these mirrors begin."""
        return records * self.stride_bytes + _PAYLOAD_OFFSET + mirrors * self.mirror_bytes

    def pack(self, key: str, moments: np.ndarray, label: int) -> bytes:
        """Return a record's bytes."""
        shape = (self.mirrors, *self.moments_shape)
        if moments.shape != shape or moments.dtype != MOMENTS_DTYPE:
            raise ValueError(f"moments are {moments.dtype} {moments.shape}; this layout takes {MOMENTS_DTYPE} {shape}")
        npy = _npy_header(shape) + moments.tobytes()
        return _member(f"{key}.npy", npy) + _member(f"{key}.cls", str(label).encode())


def names_record(header: bytes, key: str) -> bool:
    """Whether a tar header is that of a record's first member."""
    try:
        return tarfile.TarInfo.frombuf(header, "ascii", "strict").name == f"{key}.npy"
    except (tarfile.TarError, UnicodeDecodeError):
        return False


def _whole_blocks(count: int) -> int:
    return -(-count // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _member(name: str, content: bytes) -> bytes:
    """Return a tar member; nothing in it depends on who writes it, or when."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content.ljust(_whole_blocks(len(content)), b"\0")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return an npy header, version 1.0, filled with blanks to 512 bytes (the format allows any number)."""
    prefix = b"\x93NUMPY\x01\x00" + struct.pack("<H", _NPY_HEADER_BYTES - 10)
    text = f"{{'descr': '{MOMENTS_DTYPE.str}', 'fortran_order': False, 'shape': {shape}, }}"
    return prefix + text.encode().ljust(_NPY_HEADER_BYTES - 11) + b"\n"
