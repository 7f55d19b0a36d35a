"""Sampling as a user runs it: the same pictures on any number of ranks."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.conftest import TINY
from tests.launch import run


@pytest.fixture(scope="module", params=["flow", "gaussian"])
def trained(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    settings = [f"run_dir={run_dir}", f"data.path={shards}", "train.steps=4", f"diffusion.name={request.param}"]
    run(["train", "quickstart", *TINY, *settings])
    return run_dir


def sample(run_dir: Path, out: Path, *options: object, ranks: int = 1) -> None:
    common = ["--num-samples", 6, "--num-sampling-steps", 5, "--cfg-scale", 2, "--batch-size", 2, "--out", out]
    run(["sample", run_dir, *common, *options], ranks=ranks)


def test_one_and_two_ranks_draw_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    sample(trained, tmp_path / "one")
    sample(trained, tmp_path / "two", ranks=2)
    names = [f"{index:06d}.png" for index in range(6)]
    for name in names:
        assert (tmp_path / "one" / "images" / name).read_bytes() == (tmp_path / "two" / "images" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one" / "images").iterdir()) == names
    assert np.asarray(Image.open(tmp_path / "one" / "images" / names[0])).shape == (32, 32, 3)


def test_classes_seed_and_batch_size(trained: Path, tmp_path: Path) -> None:
    sample(trained, tmp_path / "a", "--classes", "stripes,0", "--seed", 1)
    sample(trained, tmp_path / "b", "--classes", "2,circles", "--seed", 1, "--batch-size", 6)
    sample(trained, tmp_path / "c", "--classes", "2,0", "--seed", 2)
    with (tmp_path / "a" / "labels.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["stripes", "circles"] * 3
    images = {
        name: np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / name / "images").iterdir())])
        for name in "abc"
    }
    assert np.abs(images["a"].astype(int) - images["b"]).max() <= 1  # another batch size: one grey level
    assert np.abs(images["a"].astype(int) - images["c"]).max() > 20
    assert (tmp_path / "a" / "grid.png").is_file()


def test_an_unknown_class_or_solver_is_refused(trained: Path, tmp_path: Path) -> None:
    for options, sentence in (
        (["--classes", "strips"], "did you mean 'stripes'"),
        (["--classes", "3"], "a number below 3"),
        (["--solver", "nonsense"], "solver 'nonsense' is unknown"),
    ):
        result = run(["sample", trained, "--out", tmp_path / "out", *options], check=False)
        assert result.returncode == 2
        assert sentence in result.stderr
