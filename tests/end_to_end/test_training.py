"""Training as a user runs it: real processes, killed and started again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import TINY
from tests.launch import ROOT, command, environment, run

STEPS = 12


def settings(shards: Path, run_dir: Path, *overrides: str) -> list[object]:
    fixed = [f"run_dir={run_dir}", f"data.path={shards}", "data.record_keys=true", f"train.steps={STEPS}"]
    return ["train", "quickstart", *TINY, *fixed, "checkpoint.every_steps=4", *overrides]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run_dir: Path) -> list[float]:
    metrics = lines(run_dir / "metrics.jsonl")
    assert [entry["step"] for entry in metrics] == list(range(1, len(metrics) + 1))
    return [entry["loss"] for entry in metrics]


def keys_of_steps(run_dir: Path, ranks: int) -> list[list[str]]:
    """Return the keys of each step over all ranks, in order."""
    by_rank = [lines(run_dir / f"keys-rank{rank}.jsonl") for rank in range(ranks)]
    return [[key for entry in entries for key in entry["keys"]] for entries in zip(*by_rank, strict=True)]


def start(arguments: list[object], ranks: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(arguments, ranks),
        env=environment(),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early:\n{process.stdout.read() if process.stdout else ''}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def workers_of(run_dir: Path) -> list[int]:
    """Return the processes that have this run folder in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if f"run_dir={run_dir}".encode() in words:
            found.append(int(entry.parent.name))
    return found


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, ZeRO 2, fp32, to the end."""
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(settings(shards, run_dir, "engine.zero_stage=2"), ranks=2)
    return run_dir


def test_a_run_leaves_what_it_promises(uninterrupted: Path) -> None:
    entry = lines(uninterrupted / "metrics.jsonl")[-1]
    assert {
        "step",
        "images_seen",
        "loss",
        "grad_norm",
        "learning_rate",
        "step_seconds",
        "images_per_second",
        "mfu",
    } == set(entry)
    assert (entry["step"], entry["images_seen"], entry["mfu"]) == (STEPS, STEPS * 8, None)
    assert (uninterrupted / "checkpoints" / "latest").read_text().strip() == "step-00000012"
    config = (uninterrupted / "config.yaml").read_text()
    assert "# torch " in config
    assert "global_batch_size: 8" in config


def test_every_epoch_holds_every_record_once(uninterrupted: Path) -> None:
    keys = [key for step in keys_of_steps(uninterrupted, 2) for key in step]
    assert len(keys) == STEPS * 8
    assert len(set(keys[:45])) == len(set(keys[45:90])) == 45  # 45 records; batches straddle the epochs
    assert keys[:45] != keys[45:90]


def test_a_killed_run_goes_on_to_the_last_bit(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = settings(shards, run_dir, "engine.zero_stage=2")
    process = start(arguments, ranks=2)
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= 6, process)
    os.kill(process.pid, signal.SIGKILL)  # the launcher alone: its workers must not outlive it
    process.wait()
    deadline = time.monotonic() + 10
    while workers_of(run_dir) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers_of(run_dir) == []
    result = run(arguments, ranks=2)
    assert "going on from step-" in result.stdout
    assert losses(run_dir) == losses(uninterrupted)
    assert keys_of_steps(run_dir, 2) == keys_of_steps(uninterrupted, 2)


def test_a_run_goes_on_with_other_ranks_and_another_stage(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(settings(shards, run_dir, "engine.zero_stage=3", "train.steps=6"), ranks=2)
    run(settings(shards, run_dir, "engine.zero_stage=1", "train.micro_batch_size_per_gpu=3"), ranks=1)
    assert losses(run_dir) == pytest.approx(losses(uninterrupted), rel=1e-5)
    whole = [sorted(step) for step in keys_of_steps(uninterrupted, 2)]
    assert [sorted(step["keys"]) for step in lines(run_dir / "keys-rank0.jsonl")[6:]] == whole[6:]


def test_a_signal_saves_and_leaves_a_marker(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = settings(shards, run_dir, "engine.zero_stage=2", "checkpoint.every_steps=1000")
    process = start([*arguments, "train.steps=100000"], ranks=1)
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= 3, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0
    marker = json.loads((run_dir / "stopped").read_text())
    assert marker["reason"] == "SIGUSR1"
    assert len(losses(run_dir)) == marker["step"]
    assert (run_dir / "checkpoints" / f"step-{marker['step']:08d}").is_dir()


def test_a_damaged_checkpoint_is_set_aside(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(settings(shards, run_dir, "engine.zero_stage=1", "train.steps=8"), ranks=1)
    file = run_dir / "checkpoints" / "step-00000008" / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = run(settings(shards, run_dir, "engine.zero_stage=1"), ranks=1)
    assert "step-00000008 is damaged" in result.stderr
    assert "going on from step-00000004" in result.stdout
    assert (run_dir / "checkpoints" / "damaged-step-00000008").is_dir()
    assert losses(run_dir) == pytest.approx(losses(uninterrupted), rel=1e-5)


def test_old_checkpoints_go_and_the_newest_stay(shards: Path, tmp_path: Path) -> None:
    run(settings(shards, tmp_path / "run", "checkpoint.every_steps=3", "checkpoint.keep=2"), ranks=1)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["latest", "step-00000009", "step-00000012"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.depth=3", "model.depth is 3 but the run began with 2"),
        ("seed=1", "seed is 1 but the run began with 0"),
        ("train.global_batch_size=16", "train.global_batch_size is 16 but the run began with 8"),
        ("diffusion.name=gaussian", "diffusion is"),
        ("train.steps=4", "train.steps=4 is less than the 12 steps"),
    ],
)
def test_what_is_fixed_for_a_run_is_refused(shards: Path, uninterrupted: Path, override: str, sentence: str) -> None:
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    result = run(settings(shards, uninterrupted, override), check=False)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_two_writers_of_one_run_folder_are_refused(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = start(settings(shards, run_dir, "train.steps=100000"), ranks=1)
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= 1, first)
    second = run(settings(shards, run_dir), check=False)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 0
    assert second.returncode == 2
    assert f"is being written by process {first.pid}" in second.stderr


def test_fine_tuning_starts_from_a_runs_weights(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    fresh = run(settings(shards, tmp_path / "fresh", "train.steps=1"))
    tuned = run(settings(shards, tmp_path / "tuned", "train.steps=1", f"init_from={uninterrupted}"))
    assert fresh.returncode == tuned.returncode == 0
    assert losses(tmp_path / "tuned")[0] < losses(tmp_path / "fresh")[0]


def test_wandb_offline_and_a_preview_grid(shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(
        settings(shards, run_dir, "train.steps=2", "preview.every_steps=2", "preview.cfg_scale=2", "wandb.mode=offline")
    )
    assert list((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert (run_dir / "samples" / "step-00000002.png").stat().st_size > 1000
