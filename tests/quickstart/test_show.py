"""`quickstart/show.py` run as a user runs it, on a small tree of coloured squares."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "quickstart" / "show.py"
COLOURS = {"hearts": (220, 20, 60), "skies": (30, 144, 255)}


def show(real: Path, samples: Path, metrics: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Run the script in a process of its own."""
    arguments = ["--real", real, "--samples", samples, "--metrics", metrics, "--out", out]
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def paint(tree: Path, count: int) -> Path:
    """Write `count` squares of each class's colour."""
    for label, colour in COLOURS.items():
        (tree / label).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (64, 64), colour).save(tree / label / f"{index:06d}.png")
    return tree


def sample(folder: Path, count: int) -> Path:
    """Write what `dit-scale sample` writes: numbered images, and a table of their classes."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,label,class"]
    for index in range(count * len(COLOURS)):
        label = index % len(COLOURS)
        name, colour = list(COLOURS.items())[label]
        Image.new("RGB", (64, 64), colour).save(folder / "images" / f"{index:06d}.png")
        rows.append(f"{index:06d}.png,{label},{name}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """Write 300 steps of a loss that falls from 3 to 1 and of which step 300 is logged twice, as after a resume."""
    losses = [(1 + step, 3 - 2 * step / 299) for step in range(300)] + [(300, 1.0)]
    lines = [json.dumps({"step": step, "loss": loss, "images_seen": 64 * step}) for step, loss in losses]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_both_pictures_are_drawn(tmp_path: Path, metrics: Path) -> None:
    result = show(paint(tmp_path / "real", 5), sample(tmp_path / "samples", 8), metrics, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "out" / "real-and-samples.png") in result.stdout
    assert str(tmp_path / "out" / "loss.png") in result.stdout
    assert Image.open(tmp_path / "out" / "loss.png").size == (960, 540)
    grid = Image.open(tmp_path / "out" / "real-and-samples.png")
    pixels = {colour: count for count, colour in grid.getcolors(1 << 16)}
    for colour in COLOURS.values():
        assert pixels[colour] == (4 + 6) * 64 * 64


def test_the_smoothed_losses_are_printed(tmp_path: Path, metrics: Path) -> None:
    result = show(paint(tmp_path / "real", 4), sample(tmp_path / "samples", 6), metrics, tmp_path / "out")
    first, last = 3 - 25 * 2 / 299, 1 + 25 * 2 / 299  # means of 51 steps of a straight line
    assert f"{first:.4f} at step 1, {last:.4f} at step 300" in result.stdout


def test_a_class_with_few_images_is_drawn_with_those_it_has(tmp_path: Path, metrics: Path) -> None:
    result = show(paint(tmp_path / "real", 1), sample(tmp_path / "samples", 2), metrics, tmp_path / "out")
    assert result.returncode == 0, result.stderr


def test_a_folder_without_samples_is_refused(tmp_path: Path, metrics: Path) -> None:
    (tmp_path / "samples").mkdir()
    result = show(paint(tmp_path / "real", 1), tmp_path / "samples", metrics, tmp_path / "out")
    assert result.returncode == 2
    assert "labels.csv" in result.stderr
