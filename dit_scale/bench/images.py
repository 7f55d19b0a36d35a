"""Synthetic photographs: JPEGs of the sizes that photographs have."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dit_scale.files import full_disk_explained

_WIDTH, _HEIGHT = 400, 350
"""About the median of ImageNet."""
_NUM_CLASSES = 4
_DISTINCT_IMAGES = 256
"""More are copies of these: drawing takes longer than decoding."""


def write_images(folder: Path, count: int) -> int:
    """Write JPEGs into class folders; return the bytes of all."""
    drawn = [_jpeg(number) for number in range(min(count, _DISTINCT_IMAGES))]
    with full_disk_explained(folder):
        for number in range(count):
            path = folder / f"class-{number % _NUM_CLASSES}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drawn[number % len(drawn)])
    return sum(len(drawn[number % len(drawn)]) for number in range(count))


def _jpeg(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(_picture(seed)).save(content, "JPEG", quality=93)
    return content.getvalue()


def _picture(seed: int) -> npt.NDArray[np.uint8]:
    """Draw noise whose amplitudes fall as 1/f, as those of natural images do (Field, JOSA A 4, 1987)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(_HEIGHT)[:, None], np.fft.rfftfreq(_WIDTH)[None]
    frequency = np.maximum(np.hypot(rows, columns), 1 / _WIDTH)
    spectrum = np.fft.rfft2(rng.standard_normal((3, _HEIGHT, _WIDTH))) / frequency
    planes = np.fft.irfft2(spectrum, s=(_HEIGHT, _WIDTH)).astype(np.float32)  # [3, h, w]
    grey = planes.mean(axis=0, keepdims=True)
    mixed = grey + 0.3 * planes  # channels go together
    values = 128 + 60 * (mixed - mixed.mean()) / mixed.std()
    return np.clip(values, 0, 255).astype(np.uint8).transpose(1, 2, 0)
