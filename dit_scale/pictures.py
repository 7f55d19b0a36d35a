"""Pictures that a person looks at: labelled grids of images, written whole or not at all."""

import math
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


def labelled_grid(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], title: str = "", headings: Sequence[str] = ()
) -> Image.Image:
    """Draw a row of images (uint8 [H, W, 3], all of one size) for each label, the label at its left.

    ``headings`` are the columns' names.
    """
    height, width = rows[0][1][0].shape[:2]
    columns = max(len(images) for _, images in rows)
    font_size = max(11, min(20, height // 4))
    font = ImageFont.load_default(size=font_size)
    line = font_size + 2 * _GAP
    left = _GAP * 2 + max(round(font.getlength(label)) for label, _ in rows)
    cell = max(width, *(round(font.getlength(heading)) for heading in headings), 0) + _GAP
    top = (line if title else 0) + (line if headings else 0)
    canvas_width = max(left + columns * cell, round(font.getlength(title)) + 2 * _GAP)
    canvas = Image.new("RGB", (int(canvas_width), top + len(rows) * (height + _GAP)), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP, _GAP), title, fill=_INK, font=font)
    for column, heading in enumerate(headings):
        middle = left + column * cell + width // 2
        pen.text((middle, top - _GAP), heading, fill=_INK, font=font, anchor="md")
    for row, (label, images) in enumerate(rows):
        y = top + row * (height + _GAP)
        pen.text((_GAP, y + height // 2), label, fill=_INK, font=font, anchor="lm")
        for column, image in enumerate(images):
            canvas.paste(Image.fromarray(image), (left + column * cell, y))
    return canvas


def tiled(images: Sequence[np.ndarray]) -> np.ndarray:
    """Lay images (uint8 [H, W, 3], all of one size) out as one, about as many across as down."""
    columns = math.ceil(math.sqrt(len(images)))
    height, width = (side + 1 for side in images[0].shape[:2])
    canvas = np.full((math.ceil(len(images) / columns) * height - 1, columns * width - 1, 3), _PAPER, dtype=np.uint8)
    for index, image in enumerate(images):
        y, x = index // columns * height, index % columns * width
        canvas[y : y + height - 1, x : x + width - 1] = image
    return canvas
