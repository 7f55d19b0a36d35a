"""Token routing in runs as a user starts them: exact over a resume, and the same with other ranks and stages."""

from pathlib import Path

import pytest
import torch

from dit_scale.checkpoint import open_whole
from tests.end_to_end.runs import losses, settings
from tests.launch import run

ROUTED = [
    "model.depth=4",
    "routing.ratio=0.75",
    "routing.from_block=2",
    "routing.to_block=3",
    "routing.fill=learnt",
    "routing.path_drop=0.2",
    "routing.until_step=6",
    "data.held_out_fraction=0.2",
    "validation.every_steps=8",
    "train.steps=8",
]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, ZeRO 2, routed for six steps and with all tokens for two; a preview guided without the path."""
    run_dir = tmp_path_factory.mktemp("routed") / "run"
    preview = ["preview.every_steps=8", "preview.cfg_scale=2", "preview.guide_by=dropped", "preview.classes=[0]"]
    run(settings(shards, run_dir, *ROUTED, "engine.zero_stage=2", *preview), ranks=2)
    assert (run_dir / "samples" / "step-00000008.png").is_file()
    return run_dir


def test_a_routed_run_goes_on_to_the_last_bit_through_the_end_of_its_routing(
    shards: Path, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    for steps in (4, 8):
        run(settings(shards, run_dir, *ROUTED, "engine.zero_stage=2", f"train.steps={steps}"), ranks=2)
    assert losses(run_dir) == losses(whole)
    ends = [open_whole(path).whole("master") for path in (run_dir, whole)]
    assert {"route.mask_token", "route.fusion.weight", "route.fusion.bias"} <= set(ends[0])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_routed_run_goes_on_with_other_ranks_and_other_stages(shards: Path, whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for steps, ranks, stage, micro_batch in ((3, 1, 3, 4), (8, 2, 0, 3)):
        own = [f"train.steps={steps}", f"engine.zero_stage={stage}", f"train.micro_batch_size_per_gpu={micro_batch}"]
        run(settings(shards, run_dir, *ROUTED, *own), ranks)
    assert losses(run_dir) == pytest.approx(losses(whole), rel=1e-5)


def test_what_is_routed_is_fixed_for_a_run(shards: Path, whole: Path) -> None:
    result = run(settings(shards, whole, *ROUTED, "routing.to_block=2"), check=False)
    assert result.returncode == 2
    assert "routing.to_block is 2 but the run began with 3" in result.stderr
