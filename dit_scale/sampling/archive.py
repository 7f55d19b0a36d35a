"""Images as ADM's evaluator reads them: an ``.npz`` with ``arr_0``, uint8 [N, H, W, 3]."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dit_scale.files import atomic_write


def write_npz(images: Sequence[Path], path: Path) -> None:
    """Write PNGs of one size as one array, an image at a time, so that memory holds one alone."""
    first = np.asarray(Image.open(images[0]))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (len(images), *first.shape)}
    )
    with (
        atomic_write(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as array,
    ):
        array.write(header.getvalue())
        for image in images:
            pixels = np.asarray(Image.open(image))
            if pixels.shape != first.shape:
                raise ValueError(f"'{image}' is {pixels.shape} where '{images[0]}' is {first.shape}")
            array.write(np.ascontiguousarray(pixels).data)
