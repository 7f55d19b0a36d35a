"""Sets of images to judge: a folder, or an .npz that is read in pieces; uint8 [N, H, W, 3] batches in a fixed order."""

import json
import logging
import os
import shlex
import zipfile
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from xxhash import xxh3_64

from dit_scale.errors import InputError
from dit_scale.image_files import FORMATS, IMAGE_ENDINGS, files_below, is_hidden
from dit_scale.kinds import GZIP, NPY, NPZ, PICKLE, TAR, ZIP, kind_of
from dit_scale.sampling.protocol import PROTOCOL, read_protocol

ARRAY = "arr_0"
"""The member of an .npz that holds the images, as in ADM's."""
RESULT = "evaluation.json"
"""What an evaluation of a folder leaves in it."""
_THREADS = 8
"""Decoders of images; Pillow lets other threads run meanwhile."""
_MOST_ENDINGS = 8
"""Endings that are named one by one."""

log = logging.getLogger(__name__)


class ImageSet(ABC):
    """Images of one size in a fixed order."""

    kind = "images"
    """What they are, for a protocol."""

    def __init__(self, path: Path):
        self.path = path
        self.count = 0
        self.size = (0, 0)
        """Width and height in pixels."""
        self.files: dict[str, dict[str, int]] | None = None
        """How many files of a folder are ``used`` and ``left_out``, by ending; None where there is no folder."""

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Yield the images, uint8 [N, H, W, 3]; raises InputError where one is damaged or of another kind."""

    @abstractmethod
    def digest(self) -> str:
        """Return what tells these files from others: the xxh3-64 of their bytes, and of a folder's names."""


class ImageFolder(ImageSet):
    """Image files anywhere below a folder, by name; what else lies there is counted and told."""

    def __init__(self, path: Path):
        super().__init__(path)
        below = (path / name for name in files_below(str(path)))
        there = [file for file in below if file.name not in (PROTOCOL, RESULT) and not is_hidden(file.name)]
        found = [file for file in there if file.suffix.lower() in IMAGE_ENDINGS]
        self._files = sorted(found, key=lambda file: file.relative_to(path).as_posix())
        used, left_out = _by_ending(found), _by_ending(set(there).difference(found))
        if not self._files:
            holds = f"{_counted(left_out)} and no image" if left_out else "no image"
            endings = ", ".join(sorted(IMAGE_ENDINGS))
            raise InputError(f"'{path}' holds {holds} ({endings}); give a folder of images, or an .npz of them")
        self.count, self.files = len(self._files), {"used": used, "left_out": left_out}
        log.log(logging.WARNING if left_out else logging.INFO, "'%s': %s", path, told(self.count, self.files))
        height, width, _ = _read(self._files[0]).shape
        self.size = (width, height)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        groups = [self._files[first : first + batch_size] for first in range(0, self.count, batch_size)]
        with ThreadPoolExecutor(_THREADS) as pool:
            ahead: deque[list[Future[np.ndarray]]] = deque()
            for group in groups:
                ahead.append([pool.submit(_read, file) for file in group])
                if len(ahead) > 2:  # two batches are decoded while one is looked at
                    yield self._stack(ahead.popleft())
            while ahead:
                yield self._stack(ahead.popleft())

    def digest(self) -> str:
        digest = xxh3_64()
        for file in self._files:
            digest.update(os.fsencode(f"{file.relative_to(self.path).as_posix()}\0{file.stat().st_size}\0"))
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def _stack(self, waiting: "list[Future[np.ndarray]]") -> np.ndarray:
        images = [image.result() for image in waiting]
        for image in images:
            if image.shape[1::-1] != self.size:
                raise InputError(
                    f"'{self.path}' holds images of {_by(image.shape[1::-1])} and of {_by(self.size)} pixels; the "
                    f"metrics compare sets of one size: crop or resize them alike first"
                )
        return np.stack(images)


class ImageArray(ImageSet):
    """The array ``arr_0`` of an .npz, streamed, so that it need not fit in memory."""

    def __init__(self, path: Path):
        super().__init__(path)
        with self._opened() as (_, shape):
            self.count, height, width, _ = shape
            self.size = (width, height)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        with self._opened() as (file, shape):
            for first in range(0, self.count, batch_size):
                count = min(batch_size, self.count - first)
                wanted = count * int(np.prod(shape[1:]))
                try:
                    content = file.read(wanted)
                except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
                    raise _damaged(self.path, error) from error
                if len(content) < wanted:
                    raise _damaged(self.path, "its images end early")
                yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])

    def digest(self) -> str:
        return file_digest(self.path)

    def _opened(self) -> "_Member":
        return _Member(self.path)


class _Member:
    """The images' member of an .npz, open behind its header."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> tuple[IO[bytes], tuple[int, ...]]:
        try:
            self._archive = zipfile.ZipFile(self._path)
            self._file = self._archive.open(f"{ARRAY}.npy")
            shape, is_fortran, kind = _header(self._file)
        except KeyError as error:
            raise InputError(f"'{self._path}' has no {ARRAY}; give an .npz whose {ARRAY} is uint8 [N, H, W, 3]") from (
                error
            )
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise _damaged(self._path, error) from error
        if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or is_fortran:
            what = "pickled objects" if kind.hasobject else f"{kind} {list(shape)}"
            raise InputError(
                f"{ARRAY} of '{self._path}' is {what}{' in Fortran order' if is_fortran else ''}; give images as uint8 "
                f"[N, H, W, 3]"
            )
        return self._file, shape

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._archive.close()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def open_images(path: Path) -> ImageSet:
    """Return the images at a path: a folder (of ``dit-scale sample``: its ``images``), or an .npz.

    Raises InputError where there are none.
    """
    if path.is_dir():
        is_output = (path / PROTOCOL).is_file() and (path / "images").is_dir()
        return ImageFolder(path / "images" if is_output else path)
    if not path.is_file():
        raise InputError(f"'{path}' is neither a folder nor a file; give a folder of images, or an .npz of them")
    if (kind := kind_of(path)) != NPZ:
        raise InputError(f"'{path}' is {kind}, neither a folder of images nor an .npz of them; {how_to_convert(path)}")
    return ImageArray(path)


def told(count: int, files: dict[str, dict[str, int]] | None) -> str:
    """Return in words how many images there are, of which endings, and what of their folder is left out."""
    text = f"{count:,} images"
    if files is not None:
        used, left_out = files["used"], files["left_out"]
        text += f" ({_counted(used)})" + (f", left out: {_counted(left_out)}" if left_out else "")
    return text


def how_to_convert(path: Path) -> str:
    """Say what makes a file that can be read of one that cannot."""
    kind, source, target = kind_of(path), json.dumps(str(path)), json.dumps(str(path.with_suffix(".npz")))
    if kind == PICKLE:
        program = (
            f'import pickle, numpy; s = pickle.load(open({source}, "rb")); s = s.get("fid", s); '
            f'numpy.savez({target}, mu=s["mu"], sigma=s["sigma"])'
        )
        return (
            f"opening it runs what it says, so dit_scale never does; if it holds statistics, as EDM2's do, and you "
            f"trust it, write an .npz of them: python -c {shlex.quote(program)}"
        )
    if kind == NPY:
        program = f"import numpy; numpy.savez({target}, numpy.load({source}))"
        return f"if it is uint8 [N, H, W, 3], write an .npz of it: python -c {shlex.quote(program)}"
    if kind in (ZIP, TAR, GZIP):
        return f"unpack it ({'python -m zipfile -e' if kind == ZIP else 'tar xf'}) and give the folder"
    return "write its images as PNGs into a folder, or as uint8 [N, H, W, 3] into an .npz"


def file_digest(path: Path) -> str:
    """Return the xxh3-64 of a file."""
    digest = xxh3_64()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def own_protocol(images: ImageSet) -> dict[str, Any] | None:
    """Return what ``dit-scale sample`` wrote down beside images of its making, or None."""
    is_folder = images.path.is_dir() and images.path.name != "images"
    place = images.path if is_folder else images.path.parent
    return read_protocol(place, "put it right, or move it away if it is of something else")


def _read(file: Path) -> np.ndarray:
    """Decode an image, uint8 [H, W, 3]."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's JPEG with its preview
                raise InputError(f"'{file}' holds several pictures; write each into a file of its own")
            if image.mode != "RGB":
                raise InputError(f"'{file}' is {image.mode}, not RGB; convert such images first, or leave them out")
            return np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"'{file}' cannot be decoded ({error}); replace it or leave it out") from error


def _damaged(path: Path, error: object) -> InputError:
    return InputError(f"'{path}' is not a whole .npz ({error}); write or copy it again")


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _by_ending(files: Iterable[Path]) -> dict[str, int]:
    counts = Counter(file.suffix.lower() or "without ending" for file in files)
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _counted(counts: dict[str, int]) -> str:
    named = [f"{count:,} {ending}" for ending, count in list(counts.items())[:_MOST_ENDINGS]]
    rest = sum(list(counts.values())[_MOST_ENDINGS:])
    return ", ".join(named) + (f", {rest:,} of others" if rest else "")
