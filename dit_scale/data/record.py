"""The byte layout of a record: two members of a plain tar, at a fixed stride.

A record is ``KEY.npy`` (fp16 moments with a leading axis for the mirrors, [M, 2C, h, w]) and ``KEY.cls`` (the label as
text); what conditions need beside the label follows as ``KEY.NAME.npy``. Headers are USTAR and npy headers fill 512
bytes, so record ``i`` of a shard begins at ``i * stride`` and its arrays at computed offsets; any tar or webdataset
reader reads the same shard by parsing it. Crops, which most readers do not want, lie at a stride in a tar of their own.
"""

import math
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dit_scale.conditioning import RecordArray

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
    arrays: tuple[RecordArray, ...] = ()
    """What each record holds beside its moments and its label."""

    @property
    def mirror_bytes(self) -> int:
        """Bytes of one mirror's moments."""
        return math.prod(self.moments_shape) * MOMENTS_DTYPE.itemsize

    @property
    def stride_bytes(self) -> int:
        """Bytes from one record to the next: each member's header and content, in whole blocks."""
        return self._moments_and_label_bytes + sum(map(_member_bytes, self.arrays))

    @property
    def _moments_and_label_bytes(self) -> int:
        npy_bytes = _NPY_HEADER_BYTES + self.mirrors * self.mirror_bytes
        return 2 * tarfile.BLOCKSIZE + _whole_blocks(npy_bytes) + tarfile.BLOCKSIZE

    def shard_bytes(self, records: int) -> int:
        """Return the size of a shard."""
        return records * self.stride_bytes + len(END_OF_SHARD)

    def offsets(self, records: npt.NDArray[np.int64], mirrors: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where in their shards these records' moments of these mirrors begin."""
        return records * self.stride_bytes + _PAYLOAD_OFFSET + mirrors * self.mirror_bytes

    def array_offsets(self, name: str, records: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where in their shards these records' numbers of an array begin."""
        before = self.arrays[: [array.name for array in self.arrays].index(name)]
        first = self._moments_and_label_bytes + sum(map(_member_bytes, before))
        return records * self.stride_bytes + first + _PAYLOAD_OFFSET

    def pack(self, key: str, moments: np.ndarray, label: int, arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
        """Return a record's bytes; ``arrays`` has all that the layout names."""
        shape = (self.mirrors, *self.moments_shape)
        if moments.shape != shape or moments.dtype != MOMENTS_DTYPE:
            raise ValueError(f"moments are {moments.dtype} {moments.shape}; this layout takes {MOMENTS_DTYPE} {shape}")
        members = [(f"{key}.npy", _npy(moments)), (f"{key}.cls", str(label).encode())]
        for array in self.arrays:
            members.append((f"{key}.{array.name}.npy", _npy(_checked(array, (arrays or {}).get(array.name)))))
        return b"".join(_member(name, content) for name, content in members)


@dataclass(frozen=True)
class CropLayout:
    """Where the bytes of crops lie: a member ``KEY.npy`` for each record, uint8 [3, S, S], at a fixed stride.

    Raw, as reading must keep pace with a GPU: compressed without loss they would take half of the bytes and about ten
    times the CPU time (docs/data.md).
    """

    image_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a crop."""
        return (3, self.image_size, self.image_size)

    @property
    def stride_bytes(self) -> int:
        """Bytes from one crop to the next."""
        return tarfile.BLOCKSIZE + _whole_blocks(_NPY_HEADER_BYTES + math.prod(self.shape))

    def file_bytes(self, records: int) -> int:
        """Return the size of the file with a shard's crops."""
        return records * self.stride_bytes + len(END_OF_SHARD)

    def offsets(self, records: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where in their files these records' crops begin."""
        return records * self.stride_bytes + _PAYLOAD_OFFSET

    def pack(self, key: str, crop: np.ndarray) -> bytes:
        """Return a crop's bytes."""
        if crop.shape != self.shape or crop.dtype != np.uint8:
            raise ValueError(f"a crop is {crop.dtype} {crop.shape}; this layout takes uint8 {self.shape}")
        return _member(f"{key}.npy", _npy(crop))


def names_record(header: bytes, key: str) -> bool:
    """Whether a tar header is that of a record's first member."""
    try:
        return tarfile.TarInfo.frombuf(header, "ascii", "strict").name == f"{key}.npy"
    except (tarfile.TarError, UnicodeDecodeError):
        return False


def _checked(array: RecordArray, found: np.ndarray | None) -> np.ndarray:
    if found is None or found.dtype != np.dtype(array.dtype) or found.shape != array.shape:
        what = "missing" if found is None else f"{found.dtype} {found.shape}"
        raise ValueError(f"array '{array.name}' is {what}; this layout takes {array.dtype} {array.shape}")
    return found


def _member_bytes(array: RecordArray) -> int:
    return tarfile.BLOCKSIZE + _whole_blocks(_NPY_HEADER_BYTES + array.num_bytes)


def _whole_blocks(count: int) -> int:
    return -(-count // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _member(name: str, content: bytes) -> bytes:
    """Return a tar member; nothing in it depends on who writes it, or when."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content.ljust(_whole_blocks(len(content)), b"\0")


def _npy(array: np.ndarray) -> bytes:
    """Return an npy file, version 1.0, its header filled with blanks to 512 bytes (the format allows any number)."""
    prefix = b"\x93NUMPY\x01\x00" + struct.pack("<H", _NPY_HEADER_BYTES - 10)
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    return prefix + text.encode().ljust(_NPY_HEADER_BYTES - 11) + b"\n" + array.tobytes()
