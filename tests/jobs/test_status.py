"""`dit-scale status` on run folders in every state, and the decision that a launcher asks for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from dit_scale.files import exclusive_lock
from dit_scale.jobs.requeue import Limits, decide
from dit_scale.jobs.status import look, status
from dit_scale.supervision.history import settle_hang, write_end, write_start
from tests.launch import command, environment


def save(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
    (run_dir / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")


def start(run_dir: Path) -> None:
    (run_dir / "stopped").unlink(missing_ok=True)
    settle_hang(run_dir)
    (run_dir / "hung").unlink(missing_ok=True)
    write_start(run_dir, World(world_size=4), 1)


def stop(run_dir: Path, step: int, cause: str = "SIGUSR1") -> None:
    save(run_dir, step)
    (run_dir / "stopped").write_text(json.dumps({"reason": cause, "step": step}))
    write_end(run_dir, cause, step, saved=True)


def hang(run_dir: Path) -> None:
    (run_dir / "hung").write_text(json.dumps({"reason": "rank 1 stands in a step", "step": 8, "rank": 1}))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that has begun."""
    (tmp_path / "config.yaml").write_text("# torch 2\ntrain:\n  steps: 1000\n")
    start(tmp_path)
    return tmp_path


def state_of(run_dir: Path) -> str:
    return look(run_dir).state


def test_states(run_dir: Path) -> None:
    assert state_of(run_dir) == "killed"
    with exclusive_lock(run_dir / ".lock", ""):
        assert state_of(run_dir) == "running"
    hang(run_dir)
    assert state_of(run_dir) == "hung"
    start(run_dir)
    stop(run_dir, 10)
    assert state_of(run_dir) == "stopped"
    start(run_dir)
    write_end(run_dir, "failure", 12, saved=False, error="RuntimeError: x")
    assert state_of(run_dir) == "failed"
    start(run_dir)
    write_end(run_dir, "done", 1000, saved=True)
    assert state_of(run_dir) == "done"


def test_pace_and_time_left(run_dir: Path) -> None:
    lines = [{"step": step, "step_seconds": 0.5, "images_per_second": 512.0} for step in range(1, 301)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_dir / "validation.jsonl").write_text('{"step": 300, "validation_loss": 0.25, "images": 9}\n')
    save(run_dir, 250)
    found = look(run_dir)
    assert (found.step, found.total_steps, found.last_save_step) == (300, 1000, 250)
    assert (found.images_per_second, found.left_seconds, found.validation_loss) == (512.0, 350.0, 0.25)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        look(tmp_path)


def test_the_table_and_the_json_say_the_same(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_end(run_dir, "out_of_memory", 12, saved=False, rank=3, error="OutOfMemoryError: CUDA out of memory")
    status(run_dir)
    table = capsys.readouterr().out
    assert "out_of_memory on rank 3 at step 12" in table
    status(run_dir, as_json=True)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["state"], found["last_end"]["rank"], found["world_size"]) == ("failed", 3, 4)


def test_who_stopped_with_all_saved_is_requeued_and_nobody_else(run_dir: Path) -> None:
    assert "killed and left no word" in decide(run_dir, Limits()).sentence
    write_end(run_dir, "failure", 3, saved=False, error="RuntimeError: broken")
    refusal = decide(run_dir, Limits())
    assert not refusal.requeue
    assert "failure (RuntimeError: broken)" in refusal.sentence
    start(run_dir)
    stop(run_dir, 10)
    assert decide(run_dir, Limits()).requeue
    start(run_dir)
    write_end(run_dir, "done", 1000, saved=True)
    assert decide(run_dir, Limits()).sentence == "not requeued: the run is done"


def test_starts_at_one_step_are_counted_until_there_is_progress(run_dir: Path) -> None:
    for _ in range(2):
        start(run_dir)
        stop(run_dir, 5)  # three starts: at 0, at 0, at 5
    start(run_dir)
    stop(run_dir, 5)
    assert decide(run_dir, Limits(max_without_progress=3)).requeue
    start(run_dir)
    stop(run_dir, 5)
    refusal = decide(run_dir, Limits(max_without_progress=3))
    assert not refusal.requeue
    assert "all stood at step 5" in refusal.sentence
    stop(run_dir, 6)
    assert decide(run_dir, Limits(max_without_progress=3)).requeue


def test_restarts_are_capped(run_dir: Path) -> None:
    for step in (1, 2, 3):
        start(run_dir)
        stop(run_dir, step)
    assert decide(run_dir, Limits(max_restarts=4)).requeue
    assert not decide(run_dir, Limits(max_restarts=3)).requeue


def test_hangs_in_a_row_are_capped(run_dir: Path) -> None:
    limits = Limits(max_hangs=2)
    hang(run_dir)
    assert decide(run_dir, limits).requeue
    for step in (10, 20):
        start(run_dir)
        save(run_dir, step)
        hang(run_dir)
    refusal = decide(run_dir, limits)
    assert not refusal.requeue
    assert "hang number 3 in a row" in refusal.sentence
    start(run_dir)
    stop(run_dir, 30)
    start(run_dir)
    save(run_dir, 40)
    hang(run_dir)
    assert decide(run_dir, limits).requeue


def test_the_command_exits_as_a_launcher_needs_it(run_dir: Path) -> None:
    def ask(*options: object) -> subprocess.CompletedProcess[str]:
        words = command(["status", run_dir, "--requeue", *options])
        return subprocess.run(words, env=environment(), capture_output=True, text=True)

    refused = ask()
    assert (refused.returncode, refused.stdout.count("\n")) == (3, 1)
    start(run_dir)
    stop(run_dir, 10)
    agreed = ask()
    assert (agreed.returncode, agreed.stdout) == (0, "requeue: stopped (SIGUSR1) at step 10\n")
    assert ask("--max-restarts", 1).returncode == 3
    assert ask("--max-restarts", 0).returncode == 2


def test_status_loads_no_torch() -> None:
    code = "import sys, dit_scale.cli, dit_scale.jobs.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0
