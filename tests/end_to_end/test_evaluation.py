"""Evaluations while a run trains: the same on any number of ranks and after a stop, and checkpoints kept by them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import images, shards  # noqa: F401 (fixtures)
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
        (["evaluation.every_steps=0", "checkpoint.keep_best=1"], "give validation.every_steps, evaluation.every_steps"),
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
