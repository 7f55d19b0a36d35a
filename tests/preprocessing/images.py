"""Small pictures drawn at test time: waves of colour with a shape on them, smooth enough to compress."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def picture(number: int, width: int = 80, height: int = 72) -> Image.Image:
    """Draw picture ``number``; each is another."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width] / max(width, height)
    fx, fy, phase = rng.uniform(0, 4, (3, 3, 1, 1))
    waves = 127.5 * (1 + np.sin(fx * x + fy * y + phase))
    image = Image.fromarray(waves.transpose(1, 2, 0).astype(np.uint8))
    left, top = (int(v) for v in rng.integers(0, 40, 2))
    ImageDraw.Draw(image).ellipse((left, top, left + 25, top + 20), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def batch(numbers: range, size: int) -> np.ndarray:
    """Return pictures as uint8 [N, 3, size, size]."""
    return np.stack([np.asarray(picture(number, size, size)) for number in numbers]).transpose(0, 3, 1, 2)


def draw_tree(root: Path, counts: dict[str, int]) -> Path:
    """Write class folders of JPEG and PNG pictures."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * label + i).save(root / name / f"{i:03d}.{'png' if i % 2 else 'jpg'}")
    return root


def write_tar(path: Path, samples: list[tuple[str, Image.Image, str]], ending: str = "png") -> None:
    """Write a webdataset tar of (key, image, label text)."""
    with tarfile.open(path, "w") as archive:
        for key, image, label in samples:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            for name, content in ((f"{key}.{ending}", buffer.getvalue()), (f"{key}.cls", label.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    """Return an image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    """Return a tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
