"""`dit-scale inspect`: the table tells the truth, and the pictures are the images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_scale.autoencoder import load_autoencoder
from dit_scale.cli import main
from dit_scale.data.dataset import LatentDataset
from preprocessing.inspect import _rows
from preprocessing.transforms import centre_crop
from tests.end_to_end.conftest import draw_images, encode_settings


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    settings = encode_settings(draw_images(folder / "images"), folder / "shards")
    main(["encode", "quickstart-encode", *settings, "autoencoder.pca_channels=24", "mirrors=both"])
    return folder / "shards"


def test_a_table_and_a_picture(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(shards), "--out", str(tmp_path / "grid.png")])
    output = " ".join(capsys.readouterr().out.split())
    assert "45" in output
    assert "3: circles, squares, stripes" in output
    assert "15 to 15, median 15" in output
    assert "24 x 8 x 8" in output
    with Image.open(tmp_path / "grid.png") as image:
        assert min(image.size) > 100


def test_crops_come_before_what_they_became(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = encode_settings(shards.parent / "images", tmp_path / "kept")
    main(["encode", "quickstart-encode", *settings, "mirrors=both", "keep_crops=true"])
    ((_, images),) = _rows(LatentDataset.open(tmp_path / "kept"), num_classes=1, images_per_class=3)
    with Image.open(shards.parent / "images" / "circles" / "000.jpg") as image:
        assert np.array_equal(images[0], centre_crop(image.convert("RGB"), 32))
    assert len(images) == 9
    main(["inspect", str(tmp_path / "kept"), "--out", str(tmp_path / "grid.png")])
    main(["inspect", str(shards), "--out", str(tmp_path / "grid.png")])
    output = " ".join(capsys.readouterr().out.split())
    assert output.index("kept, uint8, 187,392 bytes") < output.index("not kept")


def test_decoded_records_are_the_images_and_their_mirror_images(shards: Path) -> None:
    rows = _rows(LatentDataset.open(shards), num_classes=2, images_per_class=3)
    assert [(name, len(images)) for name, images in rows] == [("circles", 6), ("stripes", 6)]
    with Image.open(shards.parent / "images" / "circles" / "000.jpg") as image:
        expected = centre_crop(image.convert("RGB"), 32).astype(float)
    plain, mirrored = rows[0][1][:2]
    assert np.abs(plain - expected).mean() < 6  # 24 of 48 components
    assert np.abs(mirrored - expected[:, ::-1]).mean() < 6
    assert np.abs(mirrored - expected).mean() > 6


def test_the_table_tells_how_well_a_fitted_codec_restores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = encode_settings(draw_images(tmp_path / "images"), tmp_path / "shards", "fitted")
    main(["encode", "quickstart-encode", *settings, "autoencoder.fit_steps=2"])
    main(["inspect", str(tmp_path / "shards"), "--out", str(tmp_path / "grid.png")])
    psnr = load_autoencoder(str(tmp_path / "shards")).psnr
    assert f"{psnr:.2f} dB (PSNR, on images that it was fitted on)" in " ".join(capsys.readouterr().out.split())
