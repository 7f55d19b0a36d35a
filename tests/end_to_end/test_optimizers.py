"""Another optimizer than AdamW, from its setting to its resume."""

from pathlib import Path

import pytest
import torch

from dit_scale.checkpoint import Checkpoint
from tests.end_to_end.runs import losses, settings
from tests.launch import run


def test_a_run_with_muon_resumes_to_the_last_bit_and_with_nothing_else(shards: Path, tmp_path: Path) -> None:
    options = ["train.optimizer=muon", "engine.zero_stage=0", "train.max_grad_norm=0.5"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run(settings(shards, whole, *options, "train.steps=6"), ranks=2)
    run(settings(shards, parted, *options, "train.steps=4"), ranks=2)
    refused = run(settings(shards, parted, "engine.zero_stage=0"), check=False)
    assert refused.returncode == 2
    assert "train.optimizer is 'adamw' but the run began with 'muon', and it is fixed for a run" in refused.stderr
    run(settings(shards, parted, *options, "train.steps=6"), ranks=2)
    assert losses(parted) == losses(whole)
    one, other = (Checkpoint(run_dir / "checkpoints" / "step-00000006") for run_dir in (whole, parted))
    assert one.content_digests == other.content_digests
    assert set(one.content_digests["momentum_buffer"]).isdisjoint(one.content_digests["exp_avg"])
    assert all(torch.isfinite(value).all() for value in one.whole("momentum_buffer").values())


@pytest.mark.parametrize("stage", [1, 3])
def test_muon_is_refused_where_zero_cuts_matrices(stage: int, shards: Path, tmp_path: Path) -> None:
    options = ["train.optimizer=muon", f"engine.zero_stage={stage}"]
    refused = run(settings(shards, tmp_path / "run", *options), check=False)
    assert refused.returncode == 2
    assert f"train.optimizer=muon needs whole matrices, which engine.zero_stage={stage} cuts into" in refused.stderr
