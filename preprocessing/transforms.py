"""From an image as it was found to the square that is encoded."""

import numpy as np
import numpy.typing as npt
from PIL import Image

CENTRE_CROP = "adm-centre-crop"
"""The name of the transform in manifests."""

_MOST_RESIZED_PIXELS = 1 << 26


def centre_crop(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Shrink an RGB image until its shorter side is ``size`` and cut out its centre, uint8 [size, size, 3].

    The preprocessing of ADM (Dhariwal & Nichol, arXiv 2105.05233), to the byte: halve with a box filter while the
    shorter side stays at least ``size``, then resize with a bicubic filter.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = size / min(image.size)
    width, height = round(image.width * ratio), round(image.height * ratio)
    left, top = (width - size) // 2, (height - size) // 2
    if width * height > _MOST_RESIZED_PIXELS:
        return _resize_centre(image, (width, height), (left, top), size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _resize_centre(
    image: Image.Image, resized: tuple[int, int], corner: tuple[int, int], size: int
) -> npt.NDArray[np.uint8]:
    """Return the centre of an extremely long image without making the rest, which might fill the memory.

    Pillow rounds the edges of a box to single precision and may swap its two passes, so pixels may differ a little
    from the whole's.
    """
    (width, height), (left, top) = resized, corner
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
