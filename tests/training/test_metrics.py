"""Logs after a kill: cut back to the checkpoint, a torn last line dropped."""

from pathlib import Path

from dit_scale.training.metrics import Lines, cut_back


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
