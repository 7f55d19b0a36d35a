"""`quickstart/images.py` run as a user runs it, on the real font."""

import hashlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "quickstart" / "images.py"
SETTINGS = runpy.run_path(str(SCRIPT))
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a process of its own."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def digests(tree: Path) -> dict[str, str]:
    """Map each PNG's path within the tree to the digest of its bytes."""
    paths = tree.glob("*/*.png")
    return {str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the tree once for this module, or skip where the font cannot be had."""
    out = tmp_path_factory.mktemp("quickstart") / "emoji"
    result = run("--out", out)
    if result.returncode == 2:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stderr
    return out


def test_every_class_has_enough_images(tree: Path) -> None:
    counts = {folder.name: len(list(folder.glob("*.png"))) for folder in tree.iterdir()}
    assert set(counts) == set(SETTINGS["CLASSES"])
    assert all(20 <= count <= SETTINGS["MAX_IMAGES_PER_CLASS"] for count in counts.values()), counts
    assert sum(counts.values()) >= 400


def test_images_are_rgb_drawings_on_white(tree: Path) -> None:
    for path in tree.glob("*/*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size, image.format) == ("RGB", (64, 64), "PNG"), path
            assert image.getextrema() != ((255, 255),) * 3, f"{path} is blank"


def test_no_skin_tone_and_no_image_twice(tree: Path) -> None:
    paths = list(tree.glob("*/*.png"))
    assert not [path for path in paths if SKIN_TONES & set(path.stem.split("-"))]
    assert len({path.stem for path in paths}) == len(paths)


def test_rendering_is_deterministic(tree: Path, tmp_path: Path) -> None:
    assert run("--out", tmp_path / "again").returncode == 0
    assert digests(tmp_path / "again") == digests(tree)


def test_size(tree: Path, tmp_path: Path) -> None:
    assert run("--out", tmp_path / "large", "--size", "128").returncode == 0
    assert Image.open(next((tmp_path / "large").glob("*/*.png"))).size == (128, 128)


def test_a_complete_tree_is_left_alone(tree: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tree.glob("*/*.png")}
    result = run("--out", tree)
    assert result.returncode == 0
    assert "already complete" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in tree.glob("*/*.png")} == before


def test_a_killed_run_is_taken_up(tree: Path, tmp_path: Path) -> None:
    remains = tmp_path / ".emoji.partial" / "flags"  # what a run leaves that was killed while it drew
    remains.mkdir(parents=True)
    (remains / "half.png").write_bytes(b"half")
    assert run("--out", tmp_path / "emoji").returncode == 0
    assert digests(tmp_path / "emoji") == digests(tree)
    assert [path.name for path in tmp_path.iterdir()] == ["emoji"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = run("--out", tmp_path)
    assert result.returncode == 2
    assert "choose another --out" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_font_and_without_apt_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    result = run("--out", tmp_path / "emoji", "--font", tmp_path / "no-such-font.ttf", PATH=str(tmp_path))
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    for word in ("no-such-font.ttf", "fonts-noto-color-emoji", "make quickstart IMAGES=path"):
        assert word in result.stderr
    assert not list(tmp_path.iterdir())
