"""Images decoded and cropped ahead of the encoder, in order, by a pool of processes."""

import io
import logging
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from dit_scale.errors import Failure
from dit_scale.image_files import FORMATS
from preprocessing.pool import ProcessDied, ProcessPool
from preprocessing.sources import Place, Source
from preprocessing.transforms import centre_crop

Decoded = npt.NDArray[np.uint8] | str
"""An image, uint8 [S, S, 3], or why there is none."""

_IMAGES_PER_TASK = 8
_TASKS_AHEAD_PER_WORKER = 4
_MOST_METADATA_BYTES = 64 * 2**20  # a PNG's colour profile or text, unpacked; Pillow refuses the image above 1 MiB
_MOST_PIXELS = 178_956_970  # at which Pillow refuses, too, unless a library has told it not to

# Pillow complains of every other camera's EXIF; what matters is raised.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class Decoder:
    """Decodes and crops images of a source; with a pool, ahead of whoever takes them."""

    def __init__(
        self,
        source: Source,
        image_size: int,
        pool: ProcessPool[list[Decoded]] | None = None,
        tasks_ahead: int = 0,
        exif_rotation: bool = False,
    ):
        self._source, self._image_size, self._exif_rotation = source, image_size, exif_rotation
        self._pool, self._tasks_ahead = pool, tasks_ahead

    def decode(self, indices: Iterable[int]) -> Iterator[Decoded]:
        """Yield each image, or why it is rejected, in the order of the indices; raises Failure for storage that fails.

        A process that is killed is a Failure, too.
        """
        places = (self._source.place(index) for index in indices)
        if self._pool is None:
            yield from (decode_image(place, self._image_size, self._exif_rotation) for place in places)
            return
        try:
            yield from self._decode_ahead(self._pool, places)
        except ProcessDied as error:
            raise Failure(
                "a decoder process was killed, most likely because memory ran out, or it crashed; give the job more "
                "memory or fewer decode_workers, and run the same encode again, which makes what is missing"
            ) from error

    def _decode_ahead(self, pool: ProcessPool[list[Decoded]], places: Iterator[Place]) -> Iterator[Decoded]:
        pending: deque[Future[list[Decoded]]] = deque()
        while task := list(islice(places, _IMAGES_PER_TASK)):
            pending.append(pool.submit(task, self._image_size, self._exif_rotation))
            if len(pending) > self._tasks_ahead:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


@contextmanager
def open_decoder(source: Source, image_size: int, workers: int, exif_rotation: bool = False) -> Iterator[Decoder]:
    """Start ``workers`` processes that decode, or none where this process is to do it."""
    if workers == 0:
        yield Decoder(source, image_size, exif_rotation=exif_rotation)
        return
    with ProcessPool(workers, _decode_images) as pool:
        yield Decoder(source, image_size, pool, workers * _TASKS_AHEAD_PER_WORKER, exif_rotation)


def decode_image(place: Place, image_size: int, exif_rotation: bool = False) -> Decoded:
    """Decode and crop one image, or return why that cannot be; raises Failure for storage that fails.

    As ADM does: transparency is dropped, EXIF's rotation is ignored unless asked for, the first frame is taken.
    """
    content = place.read()  # outside of try: storage that fails is no reason to reject an image
    if not content:
        return "the file is empty"
    try:
        return centre_crop(_read_rgb(content, exif_rotation), image_size)
    except UnidentifiedImageError:  # whose text holds a memory address
        return f"UnidentifiedImageError: it is none of {', '.join(FORMATS)}"
    except Exception as error:  # Pillow's decoders raise all kinds
        return " ".join(f"{type(error).__name__}: {error}".split())


def _read_rgb(content: bytes, exif_rotation: bool) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # whatever a library has set: half a picture is none
    PngImagePlugin.MAX_TEXT_CHUNK = _MOST_METADATA_BYTES
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {_MOST_PIXELS}")
        if exif_rotation:
            ImageOps.exif_transpose(image, in_place=True)
        else:
            image.load()
        if image.mode.startswith("I") or image.mode == "F":
            return _from_wide_grey(image).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")


def _from_wide_grey(image: Image.Image) -> Image.Image:
    """Return 16-bit grey values as 8 bits, which Pillow would clip; raises ValueError for values without a range."""
    tags = getattr(image, "tag_v2", {})
    is_plain = image.mode != "I" or image.format in ("PNG", "PPM")  # whose "I" holds 16 bits, too
    if image.format == "TIFF":
        bits_per_sample, photometric = tags.get(258), tags.get(262)
        is_plain &= bits_per_sample == (16,) and photometric == 1  # black is 0
    if image.mode == "F" or not is_plain:
        raise ValueError(f"grey values of mode {image.mode} have no range that is known; store 8 or 16 bits")
    values = np.asarray(image).astype(np.uint32)  # [h, w], 0 … 65535
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _decode_images(places: list[Place], image_size: int, exif_rotation: bool) -> list[Decoded]:
    return [decode_image(place, image_size, exif_rotation) for place in places]
