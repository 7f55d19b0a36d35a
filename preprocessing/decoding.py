"""Images decoded and cropped ahead of the encoder, in order, by a pool of processes."""

import io
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image

from dit_scale.distributed.runtime import die_with_parent
from preprocessing.sources import Place, Source
from preprocessing.transforms import centre_crop

Decoded = npt.NDArray[np.uint8] | str
"""An image, uint8 [S, S, 3], or why there is none."""

_IMAGES_PER_TASK = 8
_TASKS_AHEAD_PER_WORKER = 4


class Decoder:
    """Decodes and crops images of a source; with a pool, ahead of whoever takes them."""

    def __init__(self, source: Source, image_size: int, pool: Executor | None = None, tasks_ahead: int = 0):
        self._source, self._image_size = source, image_size
        self._pool, self._tasks_ahead = pool, tasks_ahead

    def decode(self, indices: Iterable[int]) -> Iterator[Decoded]:
        """Yield each image, or why it is rejected, in the order of the indices."""
        places = (self._source.place(index) for index in indices)
        if self._pool is None:
            yield from (decode_image(place, self._image_size) for place in places)
            return
        pending: deque[Future[list[Decoded]]] = deque()
        while task := list(islice(places, _IMAGES_PER_TASK)):
            pending.append(self._pool.submit(_decode_images, task, self._image_size))
            if len(pending) > self._tasks_ahead:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


@contextmanager
def open_decoder(source: Source, image_size: int, workers: int) -> Iterator[Decoder]:
    """Start ``workers`` processes that decode, or none where this process is to do it."""
    if workers == 0:
        yield Decoder(source, image_size)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy threads and GPU handles into the children
    with ProcessPoolExecutor(workers, context, initializer=die_with_parent) as pool:
        yield Decoder(source, image_size, pool, workers * _TASKS_AHEAD_PER_WORKER)


def decode_image(place: Place, image_size: int) -> Decoded:
    """Decode and crop one image; transparency is dropped, as ADM does."""
    content = place.read()  # outside of try: storage that fails is no reason to reject an image
    try:
        with Image.open(io.BytesIO(content)) as image:
            return centre_crop(image.convert("RGB"), image_size)
    except Exception as error:  # Pillow's decoders raise all kinds
        return " ".join(f"{type(error).__name__}: {error}".split())


def _decode_images(places: list[Place], image_size: int) -> list[Decoded]:
    return [decode_image(place, image_size) for place in places]
