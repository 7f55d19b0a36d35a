"""The quickstart from end to end, with a folder of one's own images and a training of a few steps."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end.conftest import CLASSES, draw_images
from tests.launch import ROOT, environment


@pytest.mark.parametrize("given", ["images", "no folder"])
def test_images_in_pictures_out(given: str, tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images") if given == "images" else tmp_path / "nowhere"
    out = tmp_path / "out"
    small = ["train.steps=6", "model.depth=2", "model.hidden_size=64", "wandb.mode=disabled"]
    result = subprocess.run(
        ["quickstart/run.sh", Path(sys.executable).parent, out, images, *small],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=400,
        check=False,
    )
    if given == "no folder":
        assert result.returncode == 2
        assert "is not a folder; give one with a folder of images for each class" in result.stderr
        return
    assert result.returncode == 0, result.stderr[-4000:]
    assert str(out / "real-and-samples.png") in result.stdout
    grid = Image.open(out / "real-and-samples.png")
    assert grid.height > len(CLASSES) * 64
    assert Image.open(out / "loss.png").width > 500
    assert "Plotly" in (out / "run" / "report.html").read_text()
    assert len(list((out / "samples" / "images").glob("*.png"))) == 72
