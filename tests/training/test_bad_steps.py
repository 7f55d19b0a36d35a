"""The file of bad steps."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dit_scale.checkpoint import Position
from dit_scale.config import TrainSection
from dit_scale.distributed.runtime import World, process_group
from dit_scale.training.bad_step_policies import Skip
from dit_scale.training.bad_steps import BadSteps


def open_files() -> set[str]:
    links = Path("/proc/self/fd").iterdir()
    return {os.readlink(link) for link in links if link.is_symlink()}  # noqa: PTH115 (pipes are no paths)


def test_the_file_is_closed_with_the_run(tmp_path: Path) -> None:
    pending: Any = SimpleNamespace(
        position=Position(3, 12),
        batch=SimpleNamespace(keys=["a", "b"]),
        losses=torch.tensor([1.0, torch.nan]),
        verdict=SimpleNamespace(norm=float("nan")),
        limit=float("inf"),
    )
    with process_group(World(), "cpu"):
        bad_steps = BadSteps(tmp_path, TrainSection(), World(), Skip(), lambda _: None)
        bad_steps.close()  # nothing is open yet
        bad_steps.judge(pending)
        assert bad_steps.is_known(3)
        bad_steps.close()
    assert '"step": 3' in (tmp_path / "bad-steps.jsonl").read_text()
    assert str(tmp_path / "bad-steps.jsonl") not in open_files()
