"""Pictures that a person looks at: labelled grids of images, written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dit_scale.files import atomic_write

_GAP = 4
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


def write_png(image: Image.Image | np.ndarray, path: Path) -> None:
    """Write an image (PIL, or uint8 [H, W, 3]) as a PNG that appears only once it is complete."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with atomic_write(path) as file:
        picture.save(file, format="PNG")


def labelled_grid(rows: Sequence[tuple[str, Sequence[np.ndarray]]], title: str = "") -> Image.Image:
    """Draw one row of images (uint8 [H, W, 3], all of one size) for each label, the label at its left."""
    side = rows[0][1][0].shape[0]
    columns = max(len(images) for _, images in rows)
    font_size = max(11, min(20, side // 4))
    font = ImageFont.load_default(size=font_size)
    left = _GAP * 2 + max(round(font.getlength(label)) for label, _ in rows)
    top = _GAP * 2 + font_size if title else 0
    width = max(left + columns * (side + _GAP), round(font.getlength(title)) + 2 * _GAP)
    canvas = Image.new("RGB", (int(width), int(top) + len(rows) * (side + _GAP)), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP, _GAP), title, fill=_INK, font=font)
    for row, (label, images) in enumerate(rows):
        y = int(top) + row * (side + _GAP)
        pen.text((_GAP, y + side // 2), label, fill=_INK, font=font, anchor="lm")
        for column, image in enumerate(images):
            canvas.paste(Image.fromarray(image), (left + column * (side + _GAP), y))
    return canvas
