"""From an image as it was found to the square that is encoded."""

import numpy as np
import numpy.typing as npt
from PIL import Image

CENTRE_CROP = "adm-centre-crop"
"""The name of the transform in manifests."""


def centre_crop(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Shrink an RGB image until its shorter side is ``size`` and cut out its centre, uint8 [size, size, 3].

    The preprocessing of ADM (Dhariwal & Nichol, arXiv 2105.05233), to the byte: halve with a box filter while the
    shorter side stays at least ``size``, then resize with a bicubic filter.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = size / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
