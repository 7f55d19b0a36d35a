"""What a run can do without: its failures are told, not often, written down, and the same on every rank."""

from pathlib import Path

import pytest

from dit_scale.distributed.runtime import World
from dit_scale.jobs.status import look, status
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.supervision.history import read_history, write_start
from tests.launch import run


def test_a_failure_is_told_the_first_tenth_and_hundredth_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write_start(tmp_path, World(), 0)
    conveniences = Conveniences(tmp_path, World())
    for step in range(1, 121):
        with conveniences.attempt("preview", step):
            raise OSError(28, f"No space left\non device {step}")
    with conveniences.attempt("wandb"):
        raise ValueError
    full = "No space left on device"
    assert caplog.messages == [
        *(
            f"preview failed at step {step}{again} ({full} {step}); training goes on"
            for step, again in ((1, ""), (10, " for the 10th time"), (100, " for the 100th time"))
        ),
        "wandb failed (ValueError: no reason given); training goes on",
    ]
    first, second = read_history(tmp_path)[-1].troubles
    assert (first["what"], first["step"], second["what"], second["step"]) == ("preview", 1, "wandb", None)
    assert "test_conveniences.py" in first["stack"]
    assert look(tmp_path).troubles == [
        "preview failed at step 1: No space left on device 1",
        "wandb failed: ValueError: no reason given",
    ]
    status(tmp_path)
    assert "wandb failed: ValueError" in capsys.readouterr().out
    write_start(tmp_path, World(), 0)
    assert look(tmp_path).troubles == []


def test_a_request_to_stop_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Conveniences(tmp_path, World()).attempt("preview"):
        raise KeyboardInterrupt


def test_a_folder_without_room_for_the_line_is_no_failure(tmp_path: Path) -> None:
    with Conveniences(tmp_path / "nowhere", World()).attempt("preview"):
        raise OSError


def test_what_fails_on_one_rank_is_nothing_on_all(tmp_path: Path) -> None:
    """Rank 1 alone fails; the ranks go on together, and rank zero tells of it."""
    write_start(tmp_path, World(), 0)
    result = run([tmp_path], ranks=2, module="tests.supervision.conveniences_worker", timeout=60)
    assert sorted(result.stdout.split()) == ["rank-0-None-3.0", "rank-1-None-3.0"]
    assert result.stderr.count("grid failed at step 7 on rank 1 (MemoryError: no room on this rank)") == 1
    (trouble,) = read_history(tmp_path)[-1].troubles
    assert (trouble["rank"], trouble["step"]) == (1, 7)
