"""Everything beside training fails at once: the run ends as one where nothing does, and says each thing once."""

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import images, shards, uninterrupted  # noqa: F401 (fixtures)
from tests.end_to_end.runs import losses, settings
from tests.end_to_end.test_evaluation import EVALUATION
from tests.launch import run

OUT_OF_REACH = {
    "WANDB_API_KEY": "0123456789" * 4,
    "WANDB_BASE_URL": "http://127.0.0.1:9",
    "WANDB_INIT_TIMEOUT": "1",
    "WANDB_ERROR_REPORTING": "false",
}
"""A key, and a port where nobody listens."""


def test_nothing_beside_training_ends_it(
    shards: Path,  # noqa: F811
    uninterrupted: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run_dir = tmp_path / "run"
    (run_dir / "ranks.jsonl").mkdir(parents=True)  # folders and files of each other's names cannot be written
    (run_dir / "samples").touch()
    (run_dir / "evaluation").touch()
    beside = [*EVALUATION[1:], "preview.every_steps=4", "preview.num_sampling_steps=2", "wandb.mode=auto"]
    result = run(settings(shards, run_dir, "engine.zero_stage=2", *beside), ranks=2, variables=OUT_OF_REACH)
    assert losses(run_dir) == losses(uninterrupted)
    told = [line.partition(": ")[2] for line in result.stderr.splitlines() if "training goes on" in line]
    assert sorted(line.partition(" (")[0] for line in told) == [
        "evaluation failed at step 4",
        "preview failed at step 4",
        "wandb online failed",
        "writing ranks.jsonl failed",
        "writing ranks.jsonl failed for the 10th time",
    ], result.stderr
    assert result.stderr.count("wandb sync ") == 1
    assert list((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert "Traceback" not in result.stderr


def test_latents_without_a_decoder_are_trained_on(shards: Path, tmp_path: Path) -> None:  # noqa: F811
    copy = shutil.copytree(shards, tmp_path / "shards")
    (copy / "autoencoder.safetensors").unlink()
    result = run(settings(copy, tmp_path / "run", "train.steps=2", "preview.every_steps=1"))
    assert len(losses(tmp_path / "run")) == 2
    for what in ("loading the decoder", "keeping the decoder"):
        assert result.stderr.count(f"{what} failed ('{copy}' has no autoencoder.safetensors") == 1
