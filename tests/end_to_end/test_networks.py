"""A network with switches and a head, as a user trains, resumes, samples, exports and fine-tunes it."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from dit_scale.checkpoint import Checkpoint
from tests.end_to_end.runs import losses, settings
from tests.launch import run

SWITCHES = [
    *("model.norm=rmsnorm", "model.mlp=swiglu", "model.rope=true", "model.time_embedding=fourier"),
    *("model.head_hidden_size=48", "model.head_depth=1", "model.head_num_heads=4"),
]
TABLE = "t_embedder.W"


def test_a_head_and_its_random_frequencies_go_through_every_command(shards: Path, tmp_path: Path) -> None:
    run_dir, file = tmp_path / "run", tmp_path / "weights.safetensors"
    preview = ["preview.every_steps=2", "preview.num_sampling_steps=2", "engine.zero_stage=3"]
    run(settings(shards, run_dir, *SWITCHES, *preview, "train.steps=2"), ranks=2)
    run(settings(shards, run_dir, *SWITCHES, *preview, "train.steps=4"))
    assert len(losses(run_dir)) == 4
    assert (run_dir / "samples" / "step-00000004.png").is_file()
    run(["sample", run_dir, "--num-samples", 2, "--num-sampling-steps", 2, "--out", tmp_path / "out"])
    run(["export", run_dir, "--to", "safetensors", "--out", file])
    weights = load_file(file)
    first, last = (Checkpoint(run_dir / "checkpoints" / f"step-0000000{step}") for step in (2, 4))
    for kind in ("master", "ema"):
        assert torch.equal(first.whole(kind)[TABLE], weights[TABLE])
        assert torch.equal(last.whole(kind)[TABLE], weights[TABLE])
    refused = run(["export", run_dir, "--to", "diffusers", "--out", tmp_path / "pipeline"], check=False)
    assert refused.returncode == 2
    # Another seed draws other frequencies; the run's own, not those, are what it goes on with.
    tuned = [*SWITCHES, f"init_from={file}", "seed=7"]
    run(settings(shards, tmp_path / "tuned", *tuned, "train.steps=1"))
    run(settings(shards, tmp_path / "tuned", *tuned, "train.steps=2"))
    checkpoint = Checkpoint(tmp_path / "tuned" / "checkpoints" / "step-00000002")
    assert torch.equal(checkpoint.whole("ema")[TABLE], weights[TABLE])
