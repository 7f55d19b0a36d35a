"""A run with every setting of a flow: gone on with to the last bit, on other ranks to rounding, and sampled."""

import json
import math
from pathlib import Path

import pytest
import torch

from dit_scale.checkpoint import open_whole
from tests.end_to_end.runs import lines, losses, settings
from tests.launch import run

FLOW = [
    "diffusion.name=flow",
    "diffusion.prediction=x0",
    "diffusion.time_at_data=0",
    "diffusion.time_distribution=logit_normal",
    "diffusion.time_interval=[0.05, 1]",
    "diffusion.time_shift=null",
    "diffusion.time_shift_base=64",
    "diffusion.cosine_weight=1",
    "diffusion.contrastive_weight=0.05",
    "engine.zero_stage=2",
]


def test_a_run_goes_on_and_changes_its_ranks(shards: Path, tmp_path: Path) -> None:
    whole, parted, alone = tmp_path / "whole", tmp_path / "parted", tmp_path / "alone"
    run(settings(shards, whole, *FLOW), ranks=2)
    run(settings(shards, parted, *FLOW, "train.steps=4"), ranks=2)
    run(settings(shards, parted, *FLOW), ranks=2)
    run(settings(shards, alone, *FLOW, "train.micro_batch_size_per_gpu=5"), ranks=1)
    for entry in lines(whole / "metrics.jsonl"):
        terms = entry["losses"]
        assert entry["loss"] == pytest.approx(terms["mse"] + terms["cosine"] - 0.05 * terms["contrastive"], rel=1e-5)
    assert losses(parted) == losses(whole)
    ends = [open_whole(run_dir).whole("master") for run_dir in (whole, parted)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert losses(alone) == pytest.approx(losses(whole), rel=1e-4)
    out = tmp_path / "samples"
    run(["sample", whole, "--num-samples", 2, "--num-sampling-steps", 3, "--out", out])
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["solver_options"] == {"time_shift": pytest.approx(math.sqrt(4 * 8 * 8 / 64))}
