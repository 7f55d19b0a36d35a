"""Logs after a kill: cut back to the checkpoint, a torn last line dropped."""

from pathlib import Path

import pytest

from dit_scale.config import WandbConfig
from dit_scale.training.metrics import Lines, cut_back, wandb_mode


def test_lines_after_the_checkpoint_and_a_torn_one_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    cut_back(path, 2)
    lines = Lines(path)
    lines.write({"step": 3, "again": True})
    lines.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": true}\n'


def test_a_torn_line_within_the_kept_steps_ends_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    cut_back(path, 5)
    assert path.read_text() == '{"step": 1}\n'


def test_wandb_is_offline_by_itself_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_mode(WandbConfig()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert wandb_mode(WandbConfig()) == "online"
    assert wandb_mode(WandbConfig(mode="disabled")) == "disabled"
