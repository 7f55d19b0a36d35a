"""A run's history: what is written down at each start and end, and what is read back after the worst."""

import errno
import json
from pathlib import Path

import pytest
import torch

from dit_scale.distributed.runtime import World
from dit_scale.errors import Failure, InputError, NonFinite
from dit_scale.supervision import history
from dit_scale.supervision.history import (
    Recorder,
    Step,
    cause_of,
    last_save,
    read_history,
    settle_hang,
    tail,
    write_end,
)


def record(run_dir: Path, error: BaseException | None = None, step: int = 7, rank: int = 0) -> None:
    recorder = Recorder(run_dir, World(rank=rank, world_size=2), zero_stage=2)
    if rank == 0:
        recorder.__enter__()
    if error is None:
        recorder.finish("SIGUSR1", step)
    recorder.__exit__(type(error) if error else None, error, None)


def save(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (run_dir / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")


def test_a_stop_is_a_start_and_one_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    (tmp_path / "stopped").write_text('{"reason": "SIGTERM", "step": 4}')
    save(tmp_path, 4)
    record(tmp_path)
    (attempt,) = read_history(tmp_path)
    start = {key: attempt.start[key] for key in ("step", "world_size", "zero_stage", "job", "restart")}
    assert start == {"step": 4, "world_size": 2, "zero_stage": 2, "job": "12", "restart": 3}
    assert [(end["cause"], end["step"], end["saved"]) for end in attempt.ends] == [("SIGUSR1", 7, True)]
    assert not (tmp_path / "stopped").exists()  # the marker of the attempt before


def test_the_first_rank_to_fail_is_the_cause(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, World(rank=0, world_size=2), zero_stage=2).__enter__()
    record(tmp_path, MemoryError("no room"), rank=1)
    error = RuntimeError("connection closed by peer")
    recorder.__exit__(RuntimeError, error, None)
    recorder.__exit__(RuntimeError, error, None)  # left twice, written once
    (attempt,) = read_history(tmp_path)
    assert attempt.cause == "out_of_memory"
    assert [end["rank"] for end in attempt.ends] == [1, 0]
    assert attempt.ends[1]["error"] == "RuntimeError: connection closed by peer"


def test_what_was_killed_left_no_end_and_a_torn_line_swallows_nothing(tmp_path: Path) -> None:
    world = World()
    history.write_start(tmp_path, world, 0)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"event": "end", "ti')
    history.write_start(tmp_path, world, 0)
    attempts = read_history(tmp_path)
    assert [attempt.cause for attempt in attempts] == ["killed", "killed"]
    write_end(tmp_path, "done", 3, saved=True)
    assert read_history(tmp_path)[-1].cause == "done"


def test_a_watchdogs_marker_becomes_the_end_of_its_attempt(tmp_path: Path) -> None:
    history.write_start(tmp_path, World(), 0)
    (tmp_path / "hung").write_text(json.dumps({"reason": "rank 1 in the step", "step": 9, "rank": 1}))
    settle_hang(tmp_path)
    settle_hang(tmp_path)  # once
    (attempt,) = read_history(tmp_path)
    assert [(end["cause"], end["step"], end["rank"]) for end in attempt.ends] == [("hang", 9, 1)]


def explained(origin: Exception) -> Failure:
    failure = Failure("out of memory, in a sentence")
    failure.__cause__ = origin
    return failure


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (NonFinite("the loss is nan"), "non_finite"),
        (InputError("bad"), "bad_input"),
        (explained(torch.OutOfMemoryError("CUDA out of memory")), "out_of_memory"),
        (explained(OSError(errno.ENOSPC, "No space left on device")), "full_disk"),
        (OSError(errno.EDQUOT, "quota"), "full_disk"),
        (KeyboardInterrupt(), "SIGINT"),
        (RuntimeError("else"), "failure"),
    ],
)
def test_causes(error: BaseException, cause: str) -> None:
    assert cause_of(error) == cause


def test_memory_of_the_cpu_runs_out_too() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert cause_of(caught.value) == "out_of_memory"


def test_the_last_save_is_the_one_that_latest_names(tmp_path: Path) -> None:
    assert last_save(tmp_path) == (0, None)
    save(tmp_path, 5)
    (tmp_path / "checkpoints" / "step-00000009").mkdir()  # renamed, the pointer not yet moved
    assert last_save(tmp_path)[0] == 5
    (tmp_path / "checkpoints" / "step-00000005").rmdir()
    assert last_save(tmp_path)[0] == 9


def test_the_tail_of_a_growing_file_holds_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "filler": "x" * 500}) for step in range(50)]
    path.write_text("\n".join(lines) + '\n{"step": 50, "fil')
    assert [line["step"] for line in tail(path, 3, Step)] == [47, 48, 49]
    assert len(tail(path, 1000, Step)) == 50
    assert tail(tmp_path / "absent", 3, Step) == []
