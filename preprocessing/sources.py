"""Where the images come from: a tree of class folders, or webdataset tars of images.

Either becomes one table with a row an image, so that image ``i`` is read at random from anywhere. The table's order
comes from sorted names, never from the file system.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dit_scale.config import SourceConfig
from dit_scale.errors import InputError
from dit_scale.files import atomic_write

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"})
_WHOLE_FILE = -1


class Place(NamedTuple):
    """Where an image's bytes lie."""

    path: Path
    offset: int
    num_bytes: int

    def read(self) -> bytes:
        """Return the image's bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.num_bytes)


class Source:
    """A listing of labelled images: columns ``file``, ``name``, ``offset``, ``num_bytes`` and ``label``."""

    def __init__(self, root: Path, class_names: list[str], table: npt.NDArray[Any]):
        self.root, self.class_names = root, class_names
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def label(self, index: int) -> int:
        """Return an image's label."""
        return int(self._table["label"][index])

    def name(self, index: int) -> str:
        """Return an image's name: its path below the root, or tar and member."""
        return os.fsdecode(bytes(self._table["name"][index]))

    def place(self, index: int) -> Place:
        """Return where an image's bytes lie."""
        row = self._table[index]
        offset, num_bytes = int(row["offset"]), int(row["num_bytes"])
        path = self.root / os.fsdecode(bytes(row["file"]))
        return Place(path, 0, -1) if offset == _WHOLE_FILE else Place(path, offset, num_bytes)

    def digest(self) -> str:
        """Return the SHA-256 of the listing, in which no absolute path takes part."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        digest.update(str(self._table.dtype).encode())
        digest.update(np.ascontiguousarray(self._table).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the table as an npy file, for encoders on other nodes."""
        with atomic_write(path) as file:
            np.save(file, self._table, allow_pickle=False)

    @classmethod
    def load(cls, root: Path, class_names: list[str], path: Path) -> "Source":
        """Open a table that ``save`` wrote, without reading all of it."""
        return cls(root, class_names, np.load(path, mmap_mode="r", allow_pickle=False))


class _Row(NamedTuple):
    file: str
    name: str
    offset: int
    num_bytes: int
    label: int


def list_source(config: SourceConfig) -> Source:
    """List the images of a source; raises InputError where there is none to list."""
    root = Path(config.path)
    if not root.exists():
        raise InputError(f"source.path '{root}' does not exist; give a folder of class folders or of webdataset tars")
    if _is_tars(root, config.format):
        tars = sorted(root.glob("*.tar"), key=os.fsencode) if root.is_dir() else [root]
        root = root if root.is_dir() else root.parent
        rows = [row for tar in tars for row in _tar_rows(tar)]
        class_names = [str(label) for label in range(max((row.label for row in rows), default=-1) + 1)]
    else:
        class_names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
        rows = [row for label, name in enumerate(class_names) for row in _folder_rows(root, name, label)]
    if not rows:
        raise InputError(
            f"source.path '{root}' holds no image; images lie in class folders (CLASS/NAME.jpg, .png, …), or in "
            f"webdataset tars with KEY.jpg and KEY.cls"
        )
    return Source(root, class_names, _table(rows))


def _is_tars(root: Path, format_: str) -> bool:
    if format_ != "auto":
        if format_ == "folders" and not root.is_dir():
            raise InputError(
                f"source.path '{root}' is not a folder of class folders; give source.format=tars for a tar"
            )
        return format_ == "tars"
    return root.is_file() or any(root.glob("*.tar"))


def _folder_rows(root: Path, class_name: str, label: int) -> Iterator[_Row]:
    """Yield the images anywhere below a class folder, by path."""
    paths = []
    for folder, subfolders, files in os.walk(root / class_name, followlinks=True):
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        below = Path(folder).relative_to(root)
        paths += [str(below / name) for name in files if _is_image(name) and not _is_hidden(name)]
    for path in sorted(paths, key=os.fsencode):
        yield _Row(path, path, _WHOLE_FILE, -1, label)


def _tar_rows(tar: Path) -> Iterator[_Row]:
    """Yield the samples of a webdataset tar, in its order: members that share KEY, one image and one ``cls``."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                key = f"{folder}/{stem}"
                if not member.isfile() or _is_hidden(base):
                    continue
                if ending == "cls":
                    labels[key] = _label(tar, member.name, archive.extractfile(member).read())  # type: ignore[union-attr]
                elif _is_image(base):
                    images[key] = (member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InputError(f"'{tar}' is not a whole, uncompressed tar ({error}); give another or mend it") from error
    for key, (name, offset, num_bytes) in images.items():
        if key not in labels:
            raise InputError(f"'{tar}' holds image '{name}' but no '{key.lstrip('/')}.cls'; give each image its label")
        yield _Row(tar.name, f"{tar.name}/{name}", offset, num_bytes, labels[key])


def _label(tar: Path, name: str, content: bytes) -> int:
    try:
        label = int(content)
    except ValueError:
        label = -1
    if label < 0:
        raise InputError(f"'{name}' in '{tar}' is {content[:20]!r}, not a class number; write 0, 1, 2, … as text")
    return label


def _table(rows: list[_Row]) -> npt.NDArray[Any]:
    encoded = [(os.fsencode(row.file), os.fsencode(row.name), row.offset, row.num_bytes, row.label) for row in rows]
    longest_file, longest_name = (max(len(row[column]) for row in encoded) for column in (0, 1))  # type: ignore[arg-type]
    dtype = np.dtype(
        [
            ("file", f"S{longest_file}"),
            ("name", f"S{longest_name}"),
            ("offset", "<i8"),
            ("num_bytes", "<i8"),
            ("label", "<i8"),
        ]
    )
    return np.array(encoded, dtype)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS  # noqa: PTH122 (a million names)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
