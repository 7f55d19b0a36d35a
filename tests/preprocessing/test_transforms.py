"""The ADM centre crop, to the byte."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.transforms import centre_crop
from tests.preprocessing.images import picture

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("crop*_in_*.png")), ids=lambda path: path.name[:5])
def test_crops_equal_the_published_ones(path: Path) -> None:
    (expected,) = GOLDEN.glob(f"{path.name[:5]}_out_*.png")
    size = int(expected.stem.rpartition("_")[2])
    cropped = centre_crop(Image.open(path).convert("RGB"), size)
    np.testing.assert_array_equal(cropped, np.asarray(Image.open(expected)))


def test_there_are_golden_crops() -> None:
    assert len(list(GOLDEN.glob("crop*_in_*.png"))) == 3


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (64, 64), (65, 64), (129, 640), (20, 31)])
def test_any_shape_becomes_the_square(shape: tuple[int, int]) -> None:
    assert centre_crop(picture(0, *shape), 64).shape == (64, 64, 3)


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = picture(1, 64, 64)
    np.testing.assert_array_equal(centre_crop(image, 64), np.asarray(image))
