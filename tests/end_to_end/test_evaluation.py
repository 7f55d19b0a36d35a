"""Evaluations while a run trains: the same on any number of ranks and after a stop, and checkpoints kept by them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dit_scale.data.dataset import LatentDataset
from dit_scale.pictures import labelled_grid
from dit_scale.training.evaluation import KeptCrops
from tests.end_to_end.conftest import encode_settings, images, shards  # noqa: F401 (fixtures)
from tests.end_to_end.runs import settings
from tests.launch import run

DISTANCE = "frechet_efficientnet_lite0"
EVALUATION = [
    "train.steps=8",
    "evaluation.every_steps=4",
    "evaluation.num_images=20",
    "evaluation.batch_size=8",
    "evaluation.num_sampling_steps=2",
    "evaluation.cfg_scale=2",
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References are kept in a folder of this module's."""
    cache = tmp_path_factory.getbasetemp() / "evaluation-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture(scope="module")
def one_rank(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:  # noqa: F811
    run_dir = tmp_path_factory.mktemp("evaluation") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "evaluation-cache"))
        return run_dir, run(settings(shards, run_dir, *EVALUATION)).stdout


def result(run_dir: Path, step: int) -> dict[str, Any]:
    return json.loads((run_dir / "evaluation" / f"step-{step:08d}.json").read_text())


def test_a_result_tells_how_it_was_measured(one_rank: tuple[Path, str], own_cache: Path) -> None:
    run_dir, output = one_rank
    first = result(run_dir, 4)
    assert first["step"] == 4
    assert set(first["metrics"]) == {
        *(DISTANCE, "precision_efficientnet_lite0", "recall_efficientnet_lite0", "kernel_efficientnet_lite0")
    }
    protocol = first["protocol"]
    assert protocol["reference"]["kind"] == "decoded latents"
    assert (protocol["reference"]["images"], protocol["samples"]["images"]) == (20, 20)
    assert protocol["samples"]["protocol"]["cfg_scale"] == 2.0
    assert f"step 8  evaluation  {DISTANCE} {result(run_dir, 8)['metrics'][DISTANCE]:.5g}" in output
    assert len(list((own_cache / "dit_scale" / "references").glob("efficientnet-lite0-*.npz"))) == 1


def test_the_images_that_were_encoded_are_the_reference_where_they_are_kept(
    images: Path,  # noqa: F811
    one_rank: tuple[Path, str],
    tmp_path: Path,
) -> None:
    run(["encode", "quickstart-encode", *encode_settings(images, tmp_path / "kept"), "keep_crops=true"])
    output = run(settings(tmp_path / "kept", tmp_path / "run", *EVALUATION, "train.steps=4")).stdout
    ours, theirs = result(tmp_path / "run", 4), result(one_rank[0], 4)
    assert ours["protocol"]["reference"]["kind"] == "kept crops"
    assert ours["metrics"][DISTANCE] != theirs["metrics"][DISTANCE]
    assert re.search(rf"reference: the images that were encoded; .* decoded:  {DISTANCE} \d", output)
    assert "reference: decoded records (this hides what the autoencoder loses; encode keep_crops=true" in one_rank[1]
    assert_same_images(tmp_path / "kept")


def assert_same_images(shards: Path) -> None:  # noqa: F811
    """Assert that the reference's images are the crops of records spread evenly."""
    dataset = LatentDataset.open(shards)
    crops = KeptCrops(dataset, 7)
    batches = np.concatenate(list(crops.batches(3)))
    last, _ = dataset.read_crops(np.array([len(dataset) - 1]), np.zeros(1, bool))
    assert batches.shape == (7, 32, 32, 3)
    assert crops.size == (32, 32)
    assert np.array_equal(batches[-1], last[0].permute(1, 2, 0).numpy())


def test_two_ranks_and_a_stop_measure_the_same(
    shards: Path,  # noqa: F811
    one_rank: tuple[Path, str],
    tmp_path: Path,
) -> None:
    run(settings(shards, tmp_path / "run", *EVALUATION, "train.steps=4"), ranks=2)
    run(settings(shards, tmp_path / "run", *EVALUATION), ranks=2)
    for step in (4, 8):
        ours, theirs = result(tmp_path / "run", step), result(one_rank[0], step)
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-3)  # sums of gradients differ in last bits
        assert ours["protocol"] == theirs["protocol"]


def test_it_draws_what_sample_draws_with_the_same_settings(
    images: Path,  # noqa: F811
    shards: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """By a paper's protocol: guidance on three channels within an interval, and an option of the solver."""
    run_dir, out = tmp_path / "run", tmp_path / "out"
    protocol = {"guidance_channels": 3, "guidance_interval": [0.1, 0.8], "solver_options": {"time_shift": 2.0}}
    asked = [f"evaluation.{key}={value}".replace("'", "") for key, value in protocol.items()]
    asked += ["evaluation.num_sampling_steps=4", "evaluation.cfg_scale=8", f"evaluation.reference={images}"]
    fast = ["train.steps=4", "train.learning_rate=0.1", "train.warmup_steps=0"]  # so that labels matter
    run(settings(shards, run_dir, *EVALUATION, *asked, *fast))
    common = ["--num-samples", 20, "--batch-size", 8, "--num-sampling-steps", 4, "--cfg-scale", 8, "--out", out]
    options = ["--guidance-channels", 3, "--guidance-interval", "0.1,0.8", "--solver-option", "time-shift=2"]
    run(["sample", run_dir, *common, *options])
    run(["evaluate", out, images, "--batch-size", 8])
    ours, theirs = result(run_dir, 4), json.loads((out / "evaluation.json").read_text())
    assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-5)
    told, sampled = ours["protocol"]["samples"]["protocol"], json.loads((out / "protocol.json").read_text())
    for key, value in (protocol | {"solver": "heun", "num_sampling_steps": 4, "cfg_scale": 8.0, "seed": 0}).items():
        assert told[key] == sampled[key] == value
    images_before = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    run(["sample", run_dir, *common, *options[:2], *options[4:], "--overwrite"])  # without the interval
    assert any(images_before[path.name] != path.read_bytes() for path in (out / "images").iterdir())


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_preview_shows_what_sample_draws(ranks: int, shards: Path, tmp_path: Path) -> None:  # noqa: F811
    """On any number of ranks, of which some have nothing to draw or fewer images than others."""
    run_dir, out = tmp_path / "run", tmp_path / "out"
    preview = ["preview.every_steps=2", "preview.samples_per_class=1", "preview.num_sampling_steps=3"]
    alike = ["train.global_batch_size=6", "train.learning_rate=0.05", "train.warmup_steps=0", "train.steps=2"]
    run(settings(shards, run_dir, *preview, *alike, "preview.classes=[2,0]"), ranks=ranks)
    drawn = ["--num-samples", 2, "--classes", "2,0", "--num-sampling-steps", 3, "--cfg-scale", 4, "--out", out]
    run(["sample", run_dir, *drawn])
    rows = [
        (name, [np.asarray(Image.open(out / "images" / f"{index:06d}.png"))])
        for index, name in enumerate(("stripes", "circles"))
    ]
    expected = np.asarray(labelled_grid(rows, title="step 2")).astype(int)
    found = np.asarray(Image.open(run_dir / "samples" / "step-00000002.png")).astype(int)
    assert np.abs(found - expected).max() <= 1  # other threads, or another batch size: one grey level


def test_the_best_checkpoint_by_an_evaluation_stays(
    shards: Path,  # noqa: F811
    one_rank: tuple[Path, str],
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    keep = ["checkpoint.keep=1", "checkpoint.keep_best=1", f"checkpoint.best_by={DISTANCE}"]
    run(settings(shards, run_dir, *EVALUATION, *keep, "train.learning_rate=0.3", "train.steps=12"))
    values = {step: result(run_dir, step)["metrics"][DISTANCE] for step in (4, 8, 12)}
    best = min(values, key=lambda step: values[step])
    kept = {int(folder.name.removeprefix("step-")) for folder in (run_dir / "checkpoints").glob("step-*")}
    assert kept == {12, best}, values


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["evaluation.num_images=15"], "evaluation.num_images=15 holds 15 images, and the metrics need 16"),
        (["model.label_dropout=0"], "evaluation.cfg_scale=2.0 guides, but model.label_dropout=0 leaves no null label"),
        (["evaluation.solver=ddpm"], "solver 'ddpm'"),
        (["evaluation.reference=/nowhere"], "'/nowhere' is neither a folder nor a file"),
        (["evaluation.weights=/nowhere.pth"], "weights '/nowhere.pth' are not a file"),
        (["checkpoint.keep_best=1", "checkpoint.best_by=fid"], "best_by=fid is not measured in this run; choose one"),
        (["evaluation.solver_options={eta: 1}"], "evaluation: solver 'heun' does not know eta: it has only time_shift"),
        (["evaluation.guidance_channels=5"], "evaluation: guidance of 5 channels does not suit a latent of 4"),
        (
            ["evaluation.solver=dopri5", "evaluation.guidance_interval=[0.1,0.8]"],
            "evaluation: a guidance interval makes the flow jump",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    shards: Path,  # noqa: F811
    tmp_path: Path,
    overrides: list[str],
    sentence: str,
) -> None:
    failed = run(settings(shards, tmp_path / "run", *EVALUATION, *overrides), check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1), failed.stderr
    assert sentence in failed.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_best_of_what_is_not_measured_is_refused(shards: Path, tmp_path: Path) -> None:  # noqa: F811
    failed = run(settings(shards, tmp_path / "run", "checkpoint.keep_best=1"), check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1), failed.stderr
    assert "give validation.every_steps, evaluation.every_steps" in failed.stderr
