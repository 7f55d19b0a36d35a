"""Real images, encoded once, for all runs of these tests."""

import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.end_to_end.runs import settings
from tests.launch import run

CLASSES = ("circles", "squares", "stripes")
IMAGES_PER_CLASS = 15


def draw_images(folder: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    """Draw a class-folder tree of coloured shapes, 48 x 40 px PNGs and JPEGs."""
    rng = random.Random(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            image = Image.new("RGB", (48, 40), tuple(rng.randrange(256) for _ in range(3)))
            pen, ink = ImageDraw.Draw(image), tuple(rng.randrange(256) for _ in range(3))
            x, y, size = rng.randrange(20), rng.randrange(12), rng.randrange(10, 24)
            if name == "circles":
                pen.ellipse((x, y, x + size, y + size), fill=ink)
            elif name == "squares":
                pen.rectangle((x, y, x + size, y + size), fill=ink)
            else:
                for line in range(0, 48, 8):
                    pen.line((line + x % 8, 0, line, 40), fill=ink, width=3)
            image.save(folder / name / f"{number:03d}.{'jpg' if number % 3 == 0 else 'png'}")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of 4 x 8 x 8 in shards of 16 records."""
    output = tmp_path_factory.mktemp("data") / "latents"
    run(["encode", "quickstart-encode", *encode_settings(images, output)])
    return output


@pytest.fixture(scope="session")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, ZeRO 2, fp32, to the end."""
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(settings(shards, run_dir, "engine.zero_stage=2"), ranks=2)
    return run_dir


def encode_settings(images: Path, output: Path, autoencoder: object = None) -> list[str]:
    """Return settings for a small PCA codec, fitted here, or for another autoencoder."""
    codec = ["autoencoder.pca_patch_size=4", "autoencoder.pca_channels=4"]
    return [
        f"source.path={images}",
        f"output={output}",
        "image_size=32",
        *(codec if autoencoder is None else [f"autoencoder.name={autoencoder}"]),
        "shard_records=16",
        "batch_size=8",
        "decode_workers=0",
    ]
