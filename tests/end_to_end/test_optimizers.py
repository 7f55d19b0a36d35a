"""Another optimizer than AdamW, from its setting to its resume."""

from pathlib import Path

import pytest
import torch

from dit_scale.checkpoint import Checkpoint
from tests.end_to_end.runs import lines, losses, settings
from tests.launch import run


@pytest.mark.parametrize("stage", [0, 2])
def test_a_run_with_muon_resumes_to_the_last_bit_and_with_nothing_else(
    stage: int, shards: Path, tmp_path: Path
) -> None:
    options = ["train.optimizer=muon", f"engine.zero_stage={stage}", "train.max_grad_norm=0.5"]
    options += ["train.muon_learning_rate=2e-3", "train.warmup_steps=4"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run(settings(shards, whole, *options, "train.steps=6"), ranks=2)
    run(settings(shards, parted, *options, "train.steps=4"), ranks=2)
    refused = run(settings(shards, parted, f"engine.zero_stage={stage}"), check=False)
    assert refused.returncode == 2
    assert "train.optimizer is 'adamw' but the run began with 'muon', and it is fixed for a run" in refused.stderr
    run(settings(shards, parted, *options, "train.steps=6"), ranks=2)
    assert losses(parted) == losses(whole)
    one, other = (Checkpoint(run_dir / "checkpoints" / "step-00000006") for run_dir in (whole, parted))
    assert one.content_digests == other.content_digests
    assert set(one.content_digests["momentum_buffer"]).isdisjoint(one.content_digests["exp_avg"])
    rates = [(line["learning_rate"], line["muon_learning_rate"]) for line in lines(whole / "metrics.jsonl")]
    assert rates[0] == pytest.approx((0.25e-3, 0.5e-3))
    assert all(muon == pytest.approx(2 * rate) for rate, muon in rates)
    assert all(torch.isfinite(value).all() for value in one.whole("momentum_buffer").values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["engine.zero_stage=3"],
            "needs whole matrices, but engine.zero_stage=3 cuts each of them over all ranks; give",
        ),
        (["engine.zero_stage=2", "engine.offload_optimizer=true"], "which is too slow in host memory; give"),
        (["train.learning_rate=0", "train.muon_learning_rate=1e-3"], "which is 0 all along; give train.learning_rate"),
    ],
)
def test_muon_is_refused_where_it_cannot_be(options: list[str], sentence: str, shards: Path, tmp_path: Path) -> None:
    refused = run(settings(shards, tmp_path / "run", "train.optimizer=muon", *options), check=False)
    assert refused.returncode == 2
    assert sentence in refused.stderr
