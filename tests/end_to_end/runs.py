"""Training runs as a user starts them, watched and stopped from outside."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.launch import ROOT, command, environment

STEPS = 12

TINY = [
    "model.name=custom",
    "model.patch_size=2",
    "model.hidden_size=32",
    "model.depth=2",
    "model.num_heads=2",
    "train.global_batch_size=8",
    "train.micro_batch_size_per_gpu=2",
    "train.learning_rate=1e-3",
    "train.ema_decay=0.9",
    "train.extra_ema_decays=[0.5]",
    "train.power_ema_widths=[0.1]",
    "engine.precision=fp32",
    "preview.every_steps=0",
    "log.every_steps=1",
    "wandb.mode=disabled",
]
"""A model that trains in milliseconds; two micro steps a rank on two ranks."""


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


def wait_for_line(process: subprocess.Popen[str], part: str) -> str:
    """Read what a process says up to a line with these words; return that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if part in line:
            return line
    raise AssertionError(f"ended without '{part}'")


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


def kill(process: subprocess.Popen[str], run_dir: Path) -> None:
    """Kill the launcher alone, and see that its workers do not outlive it."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while workers_of(run_dir) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers_of(run_dir) == []
