"""A model without a condition, as a user trains it and samples from it."""

import csv
from pathlib import Path

from tests.end_to_end.runs import losses, settings
from tests.launch import run


def test_an_unconditional_model_trains_and_samples(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    preview = ["preview.every_steps=4", "preview.cfg_scale=1", "preview.num_sampling_steps=2"]
    run(settings(shards, run_dir, "model.condition=none", "train.steps=4", *preview))
    assert len(losses(run_dir)) == 4
    assert (run_dir / "samples" / "step-00000004.png").is_file()
    out, few = tmp_path / "out", ["--num-samples", 3, "--num-sampling-steps", 2]
    run(["sample", run_dir, *few, "--cfg-scale", 1, "--out", out])
    with (out / "labels.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["all classes"] * 3
    unknown = run(
        ["sample", run_dir, *few, "--cfg-scale", 1, "--classes", "cat", "--out", tmp_path / "cat"], check=False
    )
    assert unknown.returncode == 2
    assert "classes 'cat' are asked for, and the model was trained without" in unknown.stderr
    refused = run(["sample", run_dir, *few, "--cfg-scale", 2, "--out", tmp_path / "guided"], check=False)
    assert refused.returncode == 2
    assert "needs a null label, and this model was built with label_dropout 0 or without a condition" in refused.stderr
    weights, again = tmp_path / "weights.safetensors", tmp_path / "again.safetensors"
    run(["export", run_dir, "--to", "safetensors", "--out", weights])
    how = ["--num-heads", 2, "--objective", "flow", "--autoencoder", run_dir / "autoencoder"]
    run(["import", weights, *how, "--out", tmp_path / "imported"])
    run(["export", tmp_path / "imported", "--to", "safetensors", "--out", again])
    assert again.read_bytes() == weights.read_bytes()
    run(["sample", tmp_path / "imported", *few, "--cfg-scale", 1, "--out", tmp_path / "theirs"])
    for name in ("000000.png", "000002.png"):
        assert (tmp_path / "theirs" / "images" / name).read_bytes() == (out / "images" / name).read_bytes()
