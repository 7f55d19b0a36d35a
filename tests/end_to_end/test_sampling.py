"""Sampling as a user runs it: the same pictures on any number of ranks, and exactly the missing ones after a kill."""

import csv
import json
import os
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_scale.sampling.archive import write_npz
from tests.end_to_end.runs import TINY, start, wait_until
from tests.launch import run

COMMON = ["--num-samples", 6, "--num-sampling-steps", 5, "--cfg-scale", 2, "--batch-size", 2]


@pytest.fixture(scope="module", params=["flow", "gaussian"])
def trained(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    settings = [f"run_dir={run_dir}", f"data.path={shards}", "train.steps=4", f"diffusion.name={request.param}"]
    run(["train", "quickstart", *TINY, *settings])
    return run_dir


@pytest.fixture(scope="module")
def drawn(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of one process."""
    out = tmp_path_factory.mktemp("drawn")
    sample(trained, out, "--npz", "--frames", 3)
    return out


def sample(run_dir: Path, out: Path, *options: object, ranks: int = 1) -> None:
    run(["sample", run_dir, *COMMON, "--out", out, *options], ranks=ranks)


def pngs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "images").iterdir())}


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_draws_the_same_bytes(ranks: int, trained: Path, drawn: Path, tmp_path: Path) -> None:
    sample(trained, tmp_path, ranks=ranks)
    assert list(pngs(drawn)) == [f"{index:06d}.png" for index in range(6)]
    assert pngs(tmp_path) == pngs(drawn)
    assert np.asarray(Image.open(tmp_path / "images" / "000000.png")).shape == (32, 32, 3)


def test_begun_again_it_draws_exactly_what_is_missing(trained: Path, drawn: Path, tmp_path: Path) -> None:
    sample(trained, tmp_path, "--num-samples", 4)
    images = tmp_path / "images"
    (images / "000001.png").unlink()
    (images / "000002.png").write_bytes((images / "000002.png").read_bytes()[:-5])  # torn by a file system
    kept = (images / "000000.png").stat().st_mtime_ns
    sample(trained, tmp_path)
    assert pngs(tmp_path) == pngs(drawn)
    assert (images / "000000.png").stat().st_mtime_ns == kept


def test_killed_it_goes_on(trained: Path, drawn: Path, tmp_path: Path) -> None:
    process = start(["sample", trained, *COMMON, "--batch-size", 1, "--out", tmp_path, "--num-samples", 2000], ranks=1)
    wait_until(lambda: len(list(tmp_path.glob("images/*.png"))) >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    (tmp_path / "protocol.json").write_text(json.dumps(protocol | {"num_samples": 6}))  # as if six had been wanted
    for path in tmp_path.glob("images/*"):
        if path.name.startswith(".") or int(path.stem) >= 6:
            path.unlink()
    sample(trained, tmp_path, "--batch-size", 1)
    for name, content in pngs(drawn).items():  # drawn two at a time: one grey level
        theirs = np.asarray(Image.open(drawn / "images" / name)).astype(int)
        assert np.abs(theirs - np.asarray(Image.open(tmp_path / "images" / name))).max() <= 1, content[:4]


@pytest.mark.parametrize(
    ("options", "said"), [(["--compile"], {"compiled": True}), (["--kernels", "off"], {"kernels": "off"})]
)
def test_another_computation_draws_the_same_up_to_a_grey_level(
    options: list[str], said: dict[str, object], trained: Path, drawn: Path, tmp_path: Path
) -> None:
    sample(trained, tmp_path, *options)
    assert json.loads((tmp_path / "protocol.json").read_text()).items() >= said.items()
    for name in pngs(drawn):
        theirs, ours = (np.asarray(Image.open(out / "images" / name)).astype(int) for out in (drawn, tmp_path))
        assert np.abs(theirs - ours).max() <= 1


def test_other_settings_are_not_mixed_in(trained: Path, drawn: Path, tmp_path: Path) -> None:
    sample(trained, tmp_path, "--seed", 1)
    for options, sentence in (
        (["--seed", 2], "seed was 1 and is 2"),
        (["--seed", 1, "--num-samples", 3], "holds 6 images, more than --num-samples 3"),
    ):
        result = run(["sample", trained, *COMMON, "--out", tmp_path, *options], check=False)
        assert result.returncode == 2
        assert sentence in result.stderr
    sample(trained, tmp_path, "--overwrite")
    assert pngs(tmp_path) == pngs(drawn)


def test_what_lies_beside_the_images(trained: Path, drawn: Path) -> None:
    array = np.load(drawn / "samples.npz")["arr_0"]
    assert array.dtype == np.uint8
    images = [np.asarray(Image.open(path)) for path in sorted((drawn / "images").iterdir())]
    assert np.array_equal(array, np.stack(images))
    frames = Image.open(drawn / "frames.png")
    assert frames.height > 6 * 32  # a row an image
    assert frames.width > 3 * 32
    protocol = json.loads((drawn / "protocol.json").read_text())
    assert protocol["solver"] in ("heun", "ddpm")
    assert protocol["guidance_interval"] == [0.0, 1.0]
    assert len(protocol["weights_digest"]) == 32
    with (drawn / "labels.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["circles", "squares", "stripes"] * 2


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


def test_a_comparison_sheet(trained: Path, tmp_path: Path) -> None:
    axes = ["--grid-over", "cfg-scale=1,3", "--grid-over", "num-sampling-steps=2,4,5"]
    run(["sample", trained, "--num-samples", 4, *axes, "--out", tmp_path], ranks=2)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 2 * 65
    assert sheet.height > 3 * 65
    cells = json.loads((tmp_path / "sheet.json").read_text())["cells"]
    assert [(cell["cfg_scale"], cell["num_sampling_steps"]) for cell in cells] == [
        (1, 2), (3, 2), (1, 4), (3, 4), (1, 5), (3, 5)
    ]  # fmt: skip


def test_mistakes_are_refused(trained: Path, tmp_path: Path) -> None:
    for options, sentence in (
        (["--classes", "strips"], "did you mean 'stripes'"),
        (["--classes", "3"], "a number below 3"),
        (["--solver", "nonsense"], "solver 'nonsense' is unknown"),
        (["--solver-option", "momentum=1"], "does not know momentum"),
        (["--solver-option", "eta"], "is not of the form NAME=X"),
        (["--cfg-scale", "nan"], "--cfg-scale=nan is not a number; give a number of 0 or more"),
        (["--cfg-scale", 2, "--guidance-channels", 5], "guidance of 5 channels does not suit a latent of 4"),
        (["--guidance-interval", "0.5,0.2", "--cfg-scale", 2], "does not rise from 0"),
        (["--grid-over", "cfg=1,2"], "--grid-over knows no 'cfg'"),
        (["--grid-over", "seed=a"], "--grid-over seed=a is not a whole number"),
        (["--grid-over", "cfg-scale=1,nan"], "--grid-over cfg-scale=nan is not a number"),
    ):
        result = run(["sample", trained, "--out", tmp_path / "out", *options], check=False)
        assert result.returncode == 2, options
        assert sentence in result.stderr
        assert not (tmp_path / "out").exists()


def test_an_archive_is_written_within_bounded_memory(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    tracemalloc.start()
    write_npz([tmp_path / "picture.png"] * 500, tmp_path / "samples.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # of 6,144,000 bytes
    array = np.load(tmp_path / "samples.npz")["arr_0"]
    assert array.shape == (500, 64, 64, 3)
    assert np.array_equal(array[499], picture)
